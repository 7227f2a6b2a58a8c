/*
 * Live migration of the example device dma-engine: the states, and what begins
 * and ends with each of them. dma-engine-save.c gives the state out, dma-engine-load.c
 * takes it, and dma-engine-state.h says what it looks like in between.
 *
 * What a client does to move the device:
 *
 * 1. Source: set PRE_COPY. The device goes on working. Read until a read comes
 *    back short (there is nothing new for now), and again as long as it pays.
 * 2. Source: stop the guest, set STOP_COPY, read until a read comes back short.
 *    Now the device stands still, so this is also the time to fetch the last
 *    dirty pages of the guest's memory. Steps 1 and 2 give one stream. Step 1 may
 *    be left out.
 * 3. Source: read the configuration space.
 * 4. Destination: map the guest's memory, set RESUMING, write the stream in pieces
 *    of any size, set STOP. That fails, and RESUMING stays, if the stream is
 *    not whole; what is missing may still be written. A stream that was refused
 *    once is lost: reset the device and begin again.
 * 5. Destination: write the configuration space (command, BARs, the control words
 *    of power management, PCI Express and MSI-X), assign the interrupts, set
 *    RUNNING. What the device was doing goes on.
 * 6. Source: leave. Or, if something went wrong, set RUNNING, and it goes on here.
 *
 * The configuration space is not in the stream because a client keeps it anyway,
 * and writes it to the destination the way that it wants it there: a BAR may be
 * placed elsewhere, and interrupts go by descriptors that only the client knows.
 * The MSI-X table is in a BAR, and therefore in the stream.
 *
 * Memory that the client has mapped changes without a word to the device. It
 * compares all of it with what it has sent once it is stopped, so nothing is
 * lost; but pages that are changed through the mapping alone wait until then. The
 * client has to stop writing before it sets STOP_COPY.
 *
 * Stopped (STOP, STOP_COPY, RESUMING), the device does no DMA, does not interrupt,
 * and refuses writes to its registers with EBUSY; everything can be read.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <err.h>
#include <errno.h>
#include <stdlib.h>

#include "dma-engine-device.h"
#include "dma-engine-state.h"

bool
is_stopped(const struct engine *engine)
{
    return engine->migration != VFU_MIGR_STATE_RUNNING
           && engine->migration != VFU_MIGR_STATE_PRE_COPY;
}

void
memory_changed(struct engine *engine, size_t offset, size_t len)
{
    if (engine->saving != NULL && len > 0) {
        look_at_pages(engine->saving, offset / DMA_ENGINE_STATE_PAGE_SIZE,
                      (offset + len - 1) / DMA_ENGINE_STATE_PAGE_SIZE);
    }
}

/* Forgets the streams; their memory is as large as the device's. */
static void
end_sessions(struct engine *engine)
{
    end_saving(engine->saving);
    engine->saving = NULL;
    end_loading(engine->loading);
    engine->loading = NULL;
}

/* Begins what is not there yet: see reset_migration for why it may be missing. */
static int
begin_session(struct engine *engine, vfu_migr_state_t state)
{
    bool begun = true;

    if (state == VFU_MIGR_STATE_RESUME) {
        if (engine->loading == NULL) {
            begun = (engine->loading = begin_loading()) != NULL;
        }
    } else if (engine->saving == NULL) {
        begun = (engine->saving = begin_saving()) != NULL;
    }
    if (!begun) {
        errno = ENOMEM;
        return -1;
    }
    return 0;
}

/*
 * One step of the way to the state that the client has asked for; the library
 * takes only those that exist. The device stands between two chunks of its work,
 * see on_quiesce. When this fails the state stays as it was, so there must be
 * nothing half done then.
 */
static int
on_transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    struct engine *engine = vfu_get_private(ctx);

    switch (state) {
    case VFU_MIGR_STATE_PRE_COPY:
    case VFU_MIGR_STATE_RESUME:
        if (begin_session(engine, state) < 0) {
            return -1;
        }
        break;
    case VFU_MIGR_STATE_STOP_AND_COPY:
        /* From PRE_COPY the stream goes on, from STOP there is a new one. */
        if (begin_session(engine, state) < 0) {
            return -1;
        }
        look_at_all_pages(engine->saving);
        break;
    case VFU_MIGR_STATE_STOP:
        if (engine->migration == VFU_MIGR_STATE_RESUME && apply(engine, engine->loading) < 0) {
            return -1;
        }
        end_sessions(engine);
        break;
    case VFU_MIGR_STATE_RUNNING:
        end_sessions(engine);
        break;
    default:
        errno = EINVAL;
        return -1;
    }
    engine->migration = state;
    update_intx(engine);
    return 0;
}

static ssize_t
on_read_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct engine *engine = vfu_get_private(ctx);

    if (begin_session(engine, engine->migration) < 0) {
        return -1;
    }
    return save(engine, engine->saving, buf, count);
}

static ssize_t
on_write_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct engine *engine = vfu_get_private(ctx);

    if (begin_session(engine, engine->migration) < 0
        || load(engine, engine->loading, buf, count) < 0) {
        return -1;
    }
    return count;
}

/*
 * What a reset means for the migration state is the library's business, and it
 * does not tell: a reset by the client ends in RUNNING, but leaves PRE_COPY as it
 * is. When the client has left the state stays, and so it does when the guest
 * resets the function.
 *
 * A guest that resets its device knows nothing of the migration, and the stream
 * goes on: what was sent before, and what is sent from now on, are together the
 * state after the reset. The reset has changed memory that was sent, so all of it is
 * looked at again; a page that is half read is read to its end, from `sent`.
 */
void
reset_migration(struct engine *engine, vfu_reset_type_t type)
{
    if (type == VFU_RESET_DEVICE && engine->migration == VFU_MIGR_STATE_PRE_COPY) {
        type = VFU_RESET_PCI_FLR;
    }
    switch (type) {
    case VFU_RESET_DEVICE:
        end_sessions(engine);
        engine->migration = VFU_MIGR_STATE_RUNNING;
        break;
    case VFU_RESET_LOST_CONN:
        /* The stream is of no use to the next client. If it asks, it gets a new one. */
        end_sessions(engine);
        break;
    case VFU_RESET_PCI_FLR:
        if (engine->saving != NULL) {
            look_at_all_pages(engine->saving);
        }
        break;
    }
}

void
set_up_migration(struct engine *engine)
{
    static const vfu_migration_callbacks_t callbacks = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = on_transition,
        .read_data = on_read_data,
        .write_data = on_write_data,
    };

    engine->migration = VFU_MIGR_STATE_RUNNING;
    if (vfu_setup_device_migration_callbacks(engine->ctx, &callbacks) < 0) {
        err(EXIT_FAILURE, "vfu_setup_device_migration_callbacks");
    }
}
