/*
 * How the example device dma-engine reaches the guest's memory, and what it does
 * there: its descriptors, from the registers or from the ring, chunk by chunk.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "dma-engine-device.h"

/*
 * The guest's memory.
 */

/*
 * Finds the guest's memory from address on. Takes less than the whole if the
 * whole consists of more than max pieces; len says how much. Returns the number
 * of pieces, or -1 if some of it is not there or has not the protection asked for.
 */
static int
find_guest_memory(struct engine *engine, uint64_t address, size_t *len, size_t max, int prot)
{
    int n;

    /* Below -1 the result says how many pieces there would be. */
    while ((n = vfu_addr_to_sgl(engine->ctx, (vfu_dma_addr_t)(uintptr_t)address, *len,
                                engine->sgl, max, prot)) < -1) {
        *len /= 2;
    }
    return n;
}

/* Copies through the mappings of the pieces. */
static int
copy_mapped(struct engine *engine, int nr_sgs, uint8_t *buf, bool is_write)
{
    struct iovec iov[MAX_SGS];

    /* From here to vfu_sgl_put the mappings stay: the library unmaps nothing
     * outside of its own calls, and asks the quiesce callback before it does. */
    if (vfu_sgl_get(engine->ctx, engine->sgl, iov, nr_sgs, 0) < 0) {
        return -1;
    }
    for (int i = 0; i < nr_sgs; i++) {
        if (is_write) {
            memcpy(iov[i].iov_base, buf, iov[i].iov_len);
        } else {
            memcpy(buf, iov[i].iov_base, iov[i].iov_len);
        }
        buf += iov[i].iov_len;
    }
    /* This also marks what was written as dirty, for live migration. */
    vfu_sgl_put(engine->ctx, engine->sgl, iov, nr_sgs);
    return 0;
}

/* Lets the library copy: through a mapping, the file behind the memory, or messages. */
static int
copy_by_library(struct engine *engine, uint8_t *buf, bool is_write, int flags)
{
    return is_write ? vfu_sgl_write(engine->ctx, engine->sgl, 1, buf, flags)
                    : vfu_sgl_read(engine->ctx, engine->sgl, 1, buf, flags);
}

static enum dma_engine_status
access_guest(struct engine *engine, uint64_t address, uint8_t *buf, size_t *len, bool is_write,
             uint32_t flags)
{
    enum dma_engine_status bad_address = is_write ? DMA_ENGINE_ERR_DST : DMA_ENGINE_ERR_SRC;
    int prot = is_write ? PROT_WRITE : PROT_READ;
    int ret;

    if ((flags & (DMA_ENGINE_F_MESSAGE | DMA_ENGINE_F_DIRECT)) == 0) {
        size_t mapped_len = *len;
        int nr_sgs = find_guest_memory(engine, address, &mapped_len, MAX_SGS, prot);

        if (nr_sgs < 0) {
            return bad_address;
        }
        if (copy_mapped(engine, nr_sgs, buf, is_write) == 0) {
            *len = mapped_len;
            goto done;
        }
        /* EFAULT: some of it is not mapped. */
    }

    /* These functions take one piece. */
    if (find_guest_memory(engine, address, len, 1, prot) < 0) {
        return bad_address;
    }
    ret = copy_by_library(engine, buf, is_write,
                          flags & DMA_ENGINE_F_MESSAGE ? 0 : VFU_SGL_DIRECT_ACCESS);
    if (ret < 0) {
        vfu_log(engine->ctx, LOG_DEBUG, "transfer at %#llx failed: %m",
                (unsigned long long)address);
        return DMA_ENGINE_ERR_TRANSFER;
    }

done:
    *(is_write ? &engine->state.stats.bytes_written : &engine->state.stats.bytes_read) += *len;
    return DMA_ENGINE_DONE;
}

static enum dma_engine_status
access_memory(struct engine *engine, uint64_t offset, uint8_t *buf, size_t len, bool is_write)
{
    if (offset < DMA_ENGINE_MEMORY_START || offset > DMA_ENGINE_BAR2_SIZE
        || len > DMA_ENGINE_BAR2_SIZE - offset) {
        return is_write ? DMA_ENGINE_ERR_DST : DMA_ENGINE_ERR_SRC;
    }
    if (is_write) {
        memcpy(engine->memory + offset, buf, len);
        memory_changed(engine, offset, len);
    } else {
        memcpy(buf, engine->memory + offset, len);
    }
    return DMA_ENGINE_DONE;
}

/*
 * Moves up to *len bytes between buf and one end of the current descriptor, as far
 * as it has come; *len says how many it was.
 */
static enum dma_engine_status
access_end(struct engine *engine, uint8_t *buf, size_t *len, bool is_write)
{
    const struct dma_engine_desc *desc = &engine->state.current;
    uint32_t local = is_write ? DMA_ENGINE_F_DST_LOCAL : DMA_ENGINE_F_SRC_LOCAL;
    uint64_t address;

    if (*len == 0) {
        return DMA_ENGINE_DONE;
    }
    if (__builtin_add_overflow(is_write ? desc->dst : desc->src, engine->state.progress,
                               &address)) {
        return is_write ? DMA_ENGINE_ERR_DST : DMA_ENGINE_ERR_SRC;
    }
    if (desc->flags & local) {
        return access_memory(engine, address, buf, *len, is_write);
    }
    return access_guest(engine, address, buf, len, is_write, desc->flags);
}

/*
 * Descriptors.
 */

uint64_t
checksum(uint64_t sum, const void *buf, size_t len)
{
    const uint8_t *bytes = buf;

    for (size_t i = 0; i < len; i++) {
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    }
    return sum;
}

static void
start_descriptor(struct engine *engine, const struct dma_engine_desc *desc, enum origin origin)
{
    engine->state.current = *desc;
    engine->state.current.status = DMA_ENGINE_PENDING;
    engine->state.current.result = desc->op == DMA_ENGINE_OP_CHECKSUM ? CHECKSUM_START : 0;
    engine->state.origin = origin;
    engine->state.progress = 0;
}

/* Executes the next chunk of the current descriptor. */
static enum dma_engine_status
step_descriptor(struct engine *engine)
{
    struct dma_engine_desc *desc = &engine->state.current;
    uint64_t rest = desc->len - engine->state.progress;
    size_t len = rest < CHUNK ? rest : CHUNK;
    enum dma_engine_status status = DMA_ENGINE_DONE;
    size_t written;

    switch (desc->op) {
    case DMA_ENGINE_OP_NOP:
        return DMA_ENGINE_DONE;
    case DMA_ENGINE_OP_COPY:
    case DMA_ENGINE_OP_CHECKSUM:
        status = access_end(engine, engine->buffer, &len, false);
        break;
    case DMA_ENGINE_OP_FILL:
        memset(engine->buffer, (uint8_t)desc->value, len);
        break;
    case DMA_ENGINE_OP_PATTERN:
        for (size_t i = 0; i < len; i++) {
            engine->buffer[i] = (uint8_t)(desc->value + engine->state.progress + i);
        }
        break;
    default:
        return DMA_ENGINE_ERR_OP;
    }
    if (status != DMA_ENGINE_DONE) {
        return status;
    }

    written = len;
    if (desc->op == DMA_ENGINE_OP_CHECKSUM) {
        desc->result = checksum(desc->result, engine->buffer, len);
    } else {
        status = access_end(engine, engine->buffer, &written, true);
    }
    engine->state.progress += written;
    if (status != DMA_ENGINE_DONE) {
        return status;
    }
    return engine->state.progress == desc->len ? DMA_ENGINE_DONE : DMA_ENGINE_PENDING;
}

enum dma_engine_status
check_descriptor(const struct dma_engine_desc *desc)
{
    uint32_t known = DMA_ENGINE_F_IRQ | DMA_ENGINE_F_SRC_LOCAL | DMA_ENGINE_F_DST_LOCAL
                     | DMA_ENGINE_F_MESSAGE | DMA_ENGINE_F_DIRECT;
    uint32_t both = DMA_ENGINE_F_MESSAGE | DMA_ENGINE_F_DIRECT;

    if ((desc->flags & ~known) != 0 || (desc->flags & both) == both) {
        return DMA_ENGINE_ERR_OP;
    }
    if (desc->vector >= DMA_ENGINE_NR_VECTORS) {
        return DMA_ENGINE_ERR_VECTOR;
    }
    return DMA_ENGINE_DONE;
}

/* Moves a ring entry, or the part of it from offset on, between the guest and entry. */
static bool
access_ring(struct engine *engine, struct dma_engine_desc *entry, size_t offset, bool is_write)
{
    uint64_t address = engine->state.ring_base
                       + (uint64_t)engine->state.ring_head * sizeof(*entry) + offset;
    uint8_t *bytes = (uint8_t *)entry + offset;
    size_t rest = sizeof(*entry) - offset;

    while (rest > 0) {
        size_t len = rest;

        if (access_guest(engine, address, bytes, &len, is_write, 0) != DMA_ENGINE_DONE) {
            return false;
        }
        address += len;
        bytes += len;
        rest -= len;
    }
    return true;
}

/* A ring that does not work is taken out of service. */
static void
fail_ring(struct engine *engine)
{
    engine->state.ring_size = 0;
    engine->state.ring_head = 0;
    engine->state.ring_tail = 0;
    fail(engine, DMA_ENGINE_ERR_RING, 0);
}

static void
complete_descriptor(struct engine *engine, enum dma_engine_status status)
{
    struct dma_engine_desc *desc = &engine->state.current;
    enum origin origin = engine->state.origin;
    uint32_t vector = desc->vector < DMA_ENGINE_NR_VECTORS ? desc->vector : 0;
    bool ring_broken = false;

    engine->state.origin = FROM_NOWHERE;
    desc->status = status;
    if (origin == FROM_RING) {
        /* The driver may look as soon as it is interrupted: tell the ring first. */
        size_t offset = offsetof(struct dma_engine_desc, status);
        ring_broken = !access_ring(engine, desc, offset, true);
        engine->state.ring_head = (engine->state.ring_head + 1) % engine->state.ring_size;
    } else {
        engine->state.registers.status = status;
        engine->state.registers.result = desc->result;
    }

    engine->state.result = desc->result;
    engine->state.completed++;
    engine->state.stats.descriptors++;
    if (status != DMA_ENGINE_DONE) {
        engine->state.stats.failed++;
        fail(engine, status, vector);
    } else if (desc->flags & DMA_ENGINE_F_IRQ) {
        raise_irq(engine, DMA_ENGINE_IRQ_DONE, vector);
    }
    if (ring_broken) {
        fail_ring(engine);
    }
}

bool
has_work(const struct engine *engine)
{
    const struct engine_state *state = &engine->state;

    return (state->control & DMA_ENGINE_CONTROL_ENABLE) != 0
           && (state->origin != FROM_NOWHERE || state->doorbell != 0
               || state->ring_head != state->ring_tail);
}

bool
is_busy(const struct engine *engine)
{
    return has_work(engine) && !is_stopped(engine);
}

/*
 * One bounded piece of work, if there is any. Everything that touches the
 * guest's memory is below here, and nothing is left half way in between: when
 * it returns, the device holds no mapping and waits for no answer.
 */
void
work(struct engine *engine)
{
    struct dma_engine_desc entry;
    enum dma_engine_status status;

    if (!is_busy(engine)) {
        return;
    }
    if (engine->state.origin == FROM_NOWHERE) {
        if (engine->state.doorbell != 0) {
            engine->state.doorbell = 0;
            start_descriptor(engine, &engine->state.registers, FROM_REGISTERS);
        } else if (access_ring(engine, &entry, 0, false)) {
            start_descriptor(engine, &entry, FROM_RING);
        } else {
            fail_ring(engine);
            return;
        }
        status = check_descriptor(&engine->state.current);
        if (status != DMA_ENGINE_DONE) {
            complete_descriptor(engine, status);
            return;
        }
    }
    status = step_descriptor(engine);
    if (status != DMA_ENGINE_PENDING) {
        complete_descriptor(engine, status);
    }
}
