/*
 * The example device dma-engine from within: its state, and what its
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
 * space, that a device in the middle of its work has to be given to go on with
 * it. Only plain numbers, no pointers. How it travels: dma-engine-state.h.
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

    vfu_migr_state_t migration; /* as the library has it */
    struct saving *saving;      /* the stream being read, NULL: none */
    struct loading *loading;    /* the stream being written, NULL: none */

    bool async_quiesce;   /* option: never quiesce at once */
    bool quiesce_pending; /* vfu_device_quiesced is to be called */
    bool hand_over_pending; /* and then vfux_hand_over once more */

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

/* Makes all of the device's memory zero. */
void clear_memory(struct engine *engine);

/* dma-engine-work.c */

/* Whether there is something to execute. */
bool has_work(const struct engine *engine);

/* Whether the device is executing it: it is not stopped. */
bool is_busy(const struct engine *engine);

/* What is wrong with a descriptor before anything is done for it. */
enum dma_engine_status check_descriptor(const struct dma_engine_desc *desc);

/* 64-bit FNV-1a: CHECKSUM_START, or the sum so far, goes in. */
#define CHECKSUM_START 0xcbf29ce484222325u
uint64_t checksum(uint64_t sum, const void *buf, size_t len);

/*
 * Does one bounded piece of work, if there is any. When it returns, the device
 * holds no mapping and waits for no answer.
 */
void work(struct engine *engine);

/* dma-engine-registers.c: the callbacks of the two BARs */

vfu_region_access_cb_t bar0_access;
vfu_region_access_cb_t bar2_access;

/* dma-engine-migration.c */

void set_up_migration(struct engine *engine);

/* Whether the device is stopped: no DMA, no interrupts, registers frozen. */
bool is_stopped(const struct engine *engine);

/* The device has changed some of its memory. */
void memory_changed(struct engine *engine, size_t offset, size_t len);

/* To be called by the device's reset. */
void reset_migration(struct engine *engine, vfu_reset_type_t type);

/* dma-engine-save.c: the source's part. One struct saving is one stream. */

/* A new stream; NULL: no memory. */
struct saving *begin_saving(void);
void end_saving(struct saving *saving);

/* These pages may have changed. What is beyond the memory is disregarded. */
void look_at_pages(struct saving *saving, size_t first, size_t last);
void look_at_all_pages(struct saving *saving);

/*
 * The next bytes of the stream. Less than count: for a device that runs, there are
 * none for now; for one that is stopped, that was all.
 */
size_t save(struct engine *engine, struct saving *saving, uint8_t *buf, size_t count);

/* dma-engine-load.c: the destination's part. One struct loading is one stream. */

/* A new stream; NULL: no memory. */
struct loading *begin_loading(void);
void end_loading(struct loading *loading);

/* Takes the next bytes of the stream. -1 and errno: this one can't be loaded. */
int load(struct engine *engine, struct loading *loading, const uint8_t *buf, size_t count);

/*
 * Gives the device the state that has come. -1 and errno: there is no whole and
 * consistent one and nothing has happened; or ENOTRECOVERABLE.
 */
int apply(struct engine *engine, struct loading *loading);

/* dma-engine-upgrade.c */

/* Milliseconds that a client may have to wait for a new process, and that for an old one. */
enum { HAND_OVER_TIMEOUT = 5000 };

/* Lets others take over at a socket; NULL: at the one that came along, if any did. */
void set_up_hand_over(struct engine *engine, const char *socket);
bool hand_over(struct engine *engine);
vfu_ctx_t *ask_for_device(struct engine *engine, const char *socket);
int get_old_memory(struct engine *engine);
bool take_over(struct engine *engine);

#endif /* DMA_ENGINE_DEVICE_H */
