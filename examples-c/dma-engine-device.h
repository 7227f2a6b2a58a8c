/*
 * The example device dma-engine from within: its state, and what its three
 * source files know of each other.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef DMA_ENGINE_DEVICE_H
#define DMA_ENGINE_DEVICE_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <vfio-user/libvfio-user.h>

#include "dma-engine.h"

_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "registers are kept in the order of the guest");

enum {
    /* What is moved in one turn of the main loop. */
    CHUNK = 64 * 1024,
    /* Pieces of guest memory that one chunk may consist of. */
    MAX_SGS = 8,
    MSIX_TABLE_SIZE = DMA_ENGINE_NR_VECTORS * 16,
    CONFIG_SPACE_SIZE = 4096,
};

/* Where the descriptor being executed came from. */
enum origin { FROM_NOWHERE, FROM_REGISTERS, FROM_RING };

/*
 * The state of the device: everything, besides its memory and its configuration
 * space, that a device in the middle of its work would have to be given to go on
 * with it. Only plain numbers, no pointers.
 */
struct engine_state {
    uint32_t control;
    uint32_t irq_status;
    uint32_t irq_enable;
    uint32_t completed;
    uint32_t error;
    uint32_t ring_size;
    uint32_t ring_head;
    uint32_t ring_tail;
    uint64_t ring_base;
    uint64_t result;
    struct dma_engine_desc registers; /* DMA_ENGINE_REG_DESC */
    struct dma_engine_stats stats;
    uint8_t msix_table[MSIX_TABLE_SIZE];

    uint32_t doorbell; /* rung, and not yet looked at */
    uint32_t origin;   /* enum origin of `current` */
    struct dma_engine_desc current;
    uint64_t progress; /* bytes of `current` that are done */
};

struct engine {
    vfu_ctx_t *ctx;
    struct engine_state state;

    int memory_fd;
    uint8_t *memory; /* what BAR 2 shows, page 0 excepted */

    size_t msix_cap; /* offset of the capability */
    uint8_t power_on_config[CONFIG_SPACE_SIZE];

    bool intx_level;
    bool intx_masked;

    bool async_quiesce;   /* option: never quiesce at once */
    bool quiesce_pending; /* vfu_device_quiesced is to be called */

    dma_sg_t *sgl; /* MAX_SGS entries, opaque and of a size known at run time */
    uint8_t buffer[CHUNK];
};

/* dma-engine.c */

/* Takes what became of the causes of interrupts to the INTx line. */
void update_intx(struct engine *engine);

/* Sets bits of the interrupt status; interrupts through vector if they are enabled. */
void raise_irq(struct engine *engine, uint32_t bits, uint32_t vector);

/* Notes an error and interrupts for it. */
void fail(struct engine *engine, enum dma_engine_status error, uint32_t vector);

/* dma-engine-work.c */

/* Whether there is something to execute. */
bool is_busy(const struct engine *engine);

/*
 * Does one bounded piece of work, if there is any. When it returns, the device
 * holds no mapping and waits for no answer.
 */
void work(struct engine *engine);

/* dma-engine-registers.c: the callbacks of the two BARs */

vfu_region_access_cb_t bar0_access;
vfu_region_access_cb_t bar2_access;

#endif /* DMA_ENGINE_DEVICE_H */
