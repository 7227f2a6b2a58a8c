/*
 * What the client sees of the example device dma-engine: the registers in BAR 0
 * and the memory in BAR 2. Nothing here touches the guest's memory.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <string.h>

#include "dma-engine-device.h"

/*
 * BAR 0: registers.
 */

static uint32_t
read_status(const struct engine *engine)
{
    return (has_work(engine) ? DMA_ENGINE_STATUS_BUSY : 0)
           | (engine->state.error != 0 ? DMA_ENGINE_STATUS_ERROR : 0);
}

static uint32_t
read_register(const struct engine *engine, size_t offset)
{
    const struct engine_state *state = &engine->state;
    uint32_t value = 0;

    if (offset >= DMA_ENGINE_REG_DESC
        && offset < DMA_ENGINE_REG_DESC + sizeof(state->registers)) {
        memcpy(&value, (const uint8_t *)&state->registers + offset - DMA_ENGINE_REG_DESC, 4);
        return value;
    }
    if (offset >= DMA_ENGINE_MSIX_TABLE && offset < DMA_ENGINE_MSIX_TABLE + MSIX_TABLE_SIZE) {
        memcpy(&value, state->msix_table + offset - DMA_ENGINE_MSIX_TABLE, 4);
        return value;
    }
    switch (offset) {
    case DMA_ENGINE_REG_ID:
        return DMA_ENGINE_ID;
    case DMA_ENGINE_REG_VERSION:
        return DMA_ENGINE_VERSION;
    case DMA_ENGINE_REG_CONTROL:
        return state->control;
    case DMA_ENGINE_REG_STATUS:
        return read_status(engine);
    case DMA_ENGINE_REG_IRQ_STATUS:
        return state->irq_status;
    case DMA_ENGINE_REG_IRQ_ENABLE:
        return state->irq_enable;
    case DMA_ENGINE_REG_COMPLETED:
        return state->completed;
    case DMA_ENGINE_REG_ERROR:
        return state->error;
    case DMA_ENGINE_REG_RESULT:
        return (uint32_t)state->result;
    case DMA_ENGINE_REG_RESULT + 4:
        return (uint32_t)(state->result >> 32);
    case DMA_ENGINE_REG_RING_BASE:
        return (uint32_t)state->ring_base;
    case DMA_ENGINE_REG_RING_BASE + 4:
        return (uint32_t)(state->ring_base >> 32);
    case DMA_ENGINE_REG_RING_SIZE:
        return state->ring_size;
    case DMA_ENGINE_REG_RING_HEAD:
        return state->ring_head;
    case DMA_ENGINE_REG_RING_TAIL:
        return state->ring_tail;
    default:
        return 0;
    }
}

static void
ring_doorbell(struct engine *engine)
{
    if (engine->state.doorbell != 0 || engine->state.origin == FROM_REGISTERS) {
        fail(engine, DMA_ENGINE_ERR_BUSY, 0);
        return;
    }
    engine->state.registers.status = DMA_ENGINE_PENDING;
    engine->state.doorbell = 1;
}

/* The ring is set up while it is empty. */
static bool
ring_is_idle(const struct engine *engine)
{
    return engine->state.ring_head == engine->state.ring_tail
           && engine->state.origin != FROM_RING;
}

static void
write_ring_base(struct engine *engine, uint64_t base)
{
    if (!ring_is_idle(engine)) {
        fail(engine, DMA_ENGINE_ERR_RING, 0);
        return;
    }
    engine->state.ring_base = base & ~(uint64_t)(sizeof(struct dma_engine_desc) - 1);
}

static void
write_ring_size(struct engine *engine, uint32_t size)
{
    if (!ring_is_idle(engine) || size > DMA_ENGINE_RING_MAX) {
        fail(engine, DMA_ENGINE_ERR_RING, 0);
        return;
    }
    engine->state.ring_size = size;
    engine->state.ring_head = 0;
    engine->state.ring_tail = 0;
}

static void
write_ring_tail(struct engine *engine, uint32_t tail)
{
    if (tail >= engine->state.ring_size) {
        fail(engine, DMA_ENGINE_ERR_RING, 0);
        return;
    }
    engine->state.ring_tail = tail;
}

static void
write_control(struct engine *engine, uint32_t value)
{
    if (value & DMA_ENGINE_CONTROL_RESET) {
        /* A driver's own reset leaves the configuration space alone. */
        uint8_t msix_table[MSIX_TABLE_SIZE];
        memcpy(msix_table, engine->state.msix_table, sizeof(msix_table));
        memset(&engine->state, 0, sizeof(engine->state));
        memcpy(engine->state.msix_table, msix_table, sizeof(msix_table));
        update_intx(engine);
        return;
    }
    engine->state.control = value & DMA_ENGINE_CONTROL_ENABLE;
}

static void
write_register(struct engine *engine, size_t offset, uint32_t value)
{
    struct engine_state *state = &engine->state;

    if (offset >= DMA_ENGINE_REG_DESC
        && offset < DMA_ENGINE_REG_DESC + sizeof(state->registers)) {
        memcpy((uint8_t *)&state->registers + offset - DMA_ENGINE_REG_DESC, &value, 4);
        return;
    }
    if (offset >= DMA_ENGINE_MSIX_TABLE && offset < DMA_ENGINE_MSIX_TABLE + MSIX_TABLE_SIZE) {
        memcpy(state->msix_table + offset - DMA_ENGINE_MSIX_TABLE, &value, 4);
        return;
    }
    switch (offset) {
    case DMA_ENGINE_REG_CONTROL:
        write_control(engine, value);
        break;
    case DMA_ENGINE_REG_IRQ_STATUS:
        state->irq_status &= ~value;
        update_intx(engine);
        break;
    case DMA_ENGINE_REG_IRQ_ENABLE:
        state->irq_enable = value & DMA_ENGINE_IRQ_ALL;
        update_intx(engine);
        break;
    case DMA_ENGINE_REG_ERROR:
        state->error = 0;
        break;
    case DMA_ENGINE_REG_DOORBELL:
        ring_doorbell(engine);
        break;
    case DMA_ENGINE_REG_RING_BASE:
        write_ring_base(engine, (state->ring_base & ~(uint64_t)UINT32_MAX) | value);
        break;
    case DMA_ENGINE_REG_RING_BASE + 4:
        write_ring_base(engine, (state->ring_base & UINT32_MAX) | (uint64_t)value << 32);
        break;
    case DMA_ENGINE_REG_RING_SIZE:
        write_ring_size(engine, value);
        break;
    case DMA_ENGINE_REG_RING_TAIL:
        write_ring_tail(engine, value);
        break;
    default:
        break;
    }
}

/* Registers have 4 bytes; what is longer is an access to one after the other. */
ssize_t
bar0_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct engine *engine = vfu_get_private(ctx);

    if (count % 4 != 0 || offset % 4 != 0) {
        errno = EINVAL;
        return -1;
    }
    if (is_write && is_stopped(engine)) {
        /* What is being migrated must not change any more. */
        errno = EBUSY;
        return -1;
    }
    for (size_t i = 0; i < count; i += 4) {
        uint32_t value;

        if (is_write) {
            memcpy(&value, buf + i, 4);
            write_register(engine, offset + i, value);
        } else {
            value = read_register(engine, offset + i);
            memcpy(buf + i, &value, 4);
        }
    }
    return count;
}

/*
 * BAR 2: memory. The client maps most of it and then accesses it without a word
 * to the device. What comes here is page 0, and clients that don't map.
 */
ssize_t
bar2_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct engine *engine = vfu_get_private(ctx);
    uint8_t page0[DMA_ENGINE_MEMORY_START] = { 0 };
    size_t in_page0 = 0;

    if (offset < DMA_ENGINE_MEMORY_START) {
        in_page0 = DMA_ENGINE_MEMORY_START - offset;
        in_page0 = count < in_page0 ? count : in_page0;
        memcpy(page0, &engine->state.stats, sizeof(engine->state.stats));
    }
    if (is_write) {
        memcpy(engine->memory + offset + in_page0, buf + in_page0, count - in_page0);
        memory_changed(engine, offset + in_page0, count - in_page0);
    } else {
        memcpy(buf, page0 + (in_page0 > 0 ? offset : 0), in_page0);
        memcpy(buf + in_page0, engine->memory + offset + in_page0, count - in_page0);
    }
    return count;
}
