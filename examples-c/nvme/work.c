/*
 * nvme: working on the queues.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <string.h>
#include <sys/mman.h>

#include "controller.h"

/* Stopped for migration, the controller does nothing by itself; registers can be accessed. */
bool
is_stopped(const struct controller *ctrl)
{
    return ctrl->migration != VFU_MIGR_STATE_RUNNING && ctrl->migration != VFU_MIGR_STATE_PRE_COPY;
}

static bool
is_working(const struct controller *ctrl)
{
    return (ctrl->state.csts & (NVME_CSTS_RDY | NVME_CSTS_CFS | NVME_CSTS_SHST)) == NVME_CSTS_RDY
           && !is_stopped(ctrl);
}

static void
execute(struct controller *ctrl, unsigned sqid, const struct nvme_command *cmd)
{
    uint32_t result = 0;
    uint16_t field = 0;
    enum nvme_status status = sqid == 0 ? execute_admin(ctrl, cmd, &result)
                                        : execute_io(ctrl, cmd);

    if (status == NVME_NO_COMPLETION) {
        return;
    }
    if (status != NVME_SUCCESS) {
        field = log_error(ctrl, sqid, cmd, status);
    }
    complete(ctrl, sqid, cmd->cid, field, result);
}

/* Executes a batch of a queue's commands, as many as there is room for completions. */
static bool
process_sq(struct controller *ctrl, unsigned sqid)
{
    static const struct nvme_command nothing;
    struct nvme_state_sq *sq = &ctrl->state.sqs[sqid];
    struct nvme_command commands[BATCH];
    size_t n;

    if (sq->head == sq->tail) {
        look_at_sq_doorbell(ctrl, sqid);
        if (sq->head == sq->tail) {
            return false;
        }
    }
    n = (sq->tail > sq->head ? sq->tail : sq->size) - sq->head;
    /* Admin commands one by one: they change queues, and may complete two commands. */
    n = min(n, sqid == 0 ? 1 : BATCH);
    n = min(n, room_in_cq(ctrl, sq->cqid, n));
    if (n == 0) {
        return false;
    }
    if (!access_guest(ctrl, sq->base + sq->head * sizeof(*commands), commands,
                      n * sizeof(*commands), PROT_READ)) {
        fail(ctrl, "a submission queue can't be read");
        return false;
    }
    /*
     * A VMM that has mapped the memory's file for itself alone gives us the file, too, and
     * what its guest writes is not in it. No driver sends zeroes: it would delete the
     * admin queue.
     */
    if (sqid == 0 && memcmp(&commands[0], &nothing, sizeof(nothing)) == 0) {
        say_that_memory_is_not_shared(ctrl);
        fail(ctrl, "an admin command of zeroes");
        return false;
    }
    for (size_t i = 0; i < n && is_working(ctrl); i++) {
        sq->head = sq->head + 1 == sq->size ? 0 : sq->head + 1;
        execute(ctrl, sqid, &commands[i]);
    }
    interrupt(ctrl, sq->cqid);
    return true;
}

/* One round over all queues. Returns whether there was something to do. */
static bool
process_queues(struct controller *ctrl)
{
    bool worked = deliver_events(ctrl);

    for (unsigned qid = 0; qid < ctrl->nr_active && is_working(ctrl); qid++) {
        if (ctrl->state.sqs[qid].size != 0) {
            worked |= process_sq(ctrl, qid);
        }
    }
    return worked;
}

/* The driver has asked for a shutdown (7.6.2): all it has written has to be safe. */
static void
finish_shutdown(struct controller *ctrl)
{
    if ((ctrl->state.csts & NVME_CSTS_SHST) == NVME_CSTS_SHST_OCCURRING && !is_stopped(ctrl)) {
        if (flush(ctrl) != NVME_SUCCESS) {
            fail(ctrl, "what was written can't be made durable");
        }
        ctrl->state.csts = (ctrl->state.csts & ~NVME_CSTS_SHST) | NVME_CSTS_SHST_COMPLETE;
    }
}

/*
 * Works for a while. Returns whether there may be more to do without the client
 * sending a message.
 */
bool
work(struct controller *ctrl)
{
    finish_shutdown(ctrl);
    for (unsigned rounds = 0; rounds < ROUNDS; rounds++) {
        if (!is_working(ctrl)) {
            return false;
        }
        if (process_queues(ctrl)) {
            rounds += ROUND_WITH_WORK - 1;
        } else if (!ctrl->poll_doorbells) {
            return false;
        }
    }
    return true;
}
