/*
 * nvme: live upgrade.
 *
 * docs/live-upgrade.md has the rules. The state goes as it does in a migration, to a
 * process over the same file or memory, whose descriptor goes along. Two things are
 * different: the client has mapped the doorbells, and rings them while nobody looks, so
 * the record's are not written to them; and both processes have all of it for a moment.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vfio-user/libvfio-user-ext.h>

#include "controller.h"

/* Names of the namespace's descriptor. */
#define MEMORY "namespace in memory"
#define IN_FILE "namespace in a file"

/* It is decided who has the device. */
static void
on_handed_over(vfu_ctx_t *ctx, bool is_ours)
{
    struct controller *ctrl = vfu_get_private(ctx);

    if (is_ours && ctrl->client_doorbells != NULL) {
        munmap(ctrl->doorbells, PAGE);
        ctrl->doorbells = ctrl->client_doorbells;
        ctrl->client_doorbells = NULL;
    }
}

/* Lets others take over at a socket; NULL: at the one that came along, if any did. */
void
set_up_hand_over(struct controller *ctrl, const char *socket)
{
    static const vfux_hand_over_callbacks_t callbacks = {
        .version = VFUX_HAND_OVER_CALLBACKS_VERSION,
        .handed_over = on_handed_over,
    };

    if (vfux_setup_hand_over_callbacks(ctrl->ctx, &callbacks) < 0
        || vfux_add_hand_over_fd(ctrl->ctx, ctrl->ns.memory != NULL ? MEMORY : IN_FILE, ctrl->ns.fd)
               < 0) {
        err(EXIT_FAILURE, "hand-over");
    }
    if (socket != NULL && vfux_setup_hand_over(ctrl->ctx, socket) < 0) {
        err(EXIT_FAILURE, "vfux_setup_hand_over: %s", socket);
    }
}

/* The namespace of the process that is to be taken over from. */
void
take_namespace(struct controller *ctrl, uint64_t size, bool has_uuid)
{
    struct namespace *ns = &ctrl->ns;
    bool is_memory = false;

    ns->fd = vfux_get_old_fd(ctrl->ctx, IN_FILE);
    if (ns->fd < 0 && errno == ENOENT) {
        ns->fd = vfux_get_old_fd(ctrl->ctx, MEMORY);
        is_memory = true;
    }
    if (ns->fd < 0) {
        err(EXIT_FAILURE, "the other process has no namespace to hand over");
    }
    ns->readonly = (fcntl(ns->fd, F_GETFL) & O_ACCMODE) == O_RDONLY;
    if (size == 0) {
        size = lseek(ns->fd, 0, SEEK_END);
    }
    if (is_memory) {
        ns->memory = map_file(ns->fd, 0, size);
    }
    know_namespace(ns, size, has_uuid);
}

/* Its doorbells, if the client may have mapped them. They are the other one's still. */
void
take_doorbells(struct controller *ctrl)
{
    vfux_old_region_t old;

    if (vfux_get_old_region(ctrl->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, &old) < 0) {
        err(EXIT_FAILURE, "vfux_get_old_region");
    }
    ctrl->poll_doorbells = old.fd != -1;
    ctrl->bar0_fd = create_memory_file("nvme BAR 0", NVME_BAR0_SIZE);
    ctrl->doorbells = map_file(ctrl->bar0_fd, NVME_DOORBELLS, PAGE);
    if (old.fd != -1) {
        /* What is written before they are ours goes to a page of our own. */
        close(ctrl->bar0_fd);
        ctrl->bar0_fd = old.fd;
        ctrl->client_doorbells = map_file(old.fd, NVME_DOORBELLS, PAGE);
    }
}

/* Answers a process that wants to take over. Returns whether it has. */
bool
hand_over(struct controller *ctrl)
{
    int outcome = vfux_hand_over(ctrl->ctx, HAND_OVER_TIMEOUT);

    if (outcome < 0) {
        warn("not handed over");
    }
    return outcome == 1;
}

/* A context for the device of the process that hands over at a socket. */
vfu_ctx_t *
ask_for_device(struct controller *ctrl, const char *socket)
{
    vfu_ctx_t *ctx = vfux_create_ctx_taking_over(socket, HAND_OVER_TIMEOUT,
                                                 LIBVFIO_USER_FLAG_ATTACH_NB, ctrl,
                                                 VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(EXIT_FAILURE, "vfux_create_ctx_taking_over: %s", socket);
    }
    return ctx;
}

/* Goes on with that device. Returns whether it has a client. */
bool
take_over(struct controller *ctrl)
{
    int taken = vfux_take_over(ctrl->ctx, HAND_OVER_TIMEOUT);

    if (taken < 0) {
        err(EXIT_FAILURE, "the other process goes on: vfux_take_over");
    }
    return taken == 1;
}
