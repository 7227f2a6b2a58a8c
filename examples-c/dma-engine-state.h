/*
 * The example device dma-engine on its way from one process to another: the
 * stream of bytes that it gives out in PRE_COPY and STOP_COPY, and takes in
 * RESUMING. All numbers are little endian, nothing is padded.
 *
 *     header, record, record, ..., END record
 *
 * A record is its type, the length of what follows, and that. First come pages
 * of the device's memory, in any order, each as often as it has changed; memory
 * that no page tells of is zero. Then come the others, each once, in the order of
 * their numbers. The END record closes the stream with a checksum of all of it.
 * The configuration space is not in it: the client has that.
 *
 * How this can grow, and old and new devices still understand each other:
 *
 * - What a device may do without goes into a new record with
 *   DMA_ENGINE_STATE_OPTIONAL set. Who doesn't know it skips it.
 * - What must not be lost goes into a new record without that flag. Who doesn't
 *   know it refuses the stream, and the device goes on where it was. Write such
 *   a record only when there is something in it that differs from a device
 *   which never had it: streams of devices that don't use the new feature then
 *   still load everywhere.
 * - The header, and records other than PAGE and END, may get longer at the end.
 *   Who expects less skips the rest, so the rest has to be something that may be
 *   skipped. Who expects more takes what is missing as zero.
 * - Numbers and fields never change their meaning, nor are they used again.
 * - Only a change that fits none of this raises the version.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef DMA_ENGINE_STATE_H
#define DMA_ENGINE_STATE_H

#include <stdint.h>

#include "dma-engine.h"

#define DMA_ENGINE_STATE_MAGIC 0x5453474e45414d44u /* "DMAENGST" */
#define DMA_ENGINE_STATE_VERSION 1u
#define DMA_ENGINE_STATE_PAGE_SIZE 4096u
/* No header is longer, whatever it has grown to. */
#define DMA_ENGINE_STATE_HEADER_MAX 4096u

struct dma_engine_state_header {
    uint64_t magic;
    uint32_t version;
    uint32_t length;      /* of this header */
    uint64_t memory_size; /* of BAR 2; has to be that of the device that loads */
    uint32_t page_size;
    uint32_t reserved;    /* 0 */
};

struct dma_engine_state_record {
    uint32_t type;   /* DMA_ENGINE_STATE_... */
    uint32_t length; /* of what follows */
};

/* Flag of a type: who does not know the record may skip it. */
#define DMA_ENGINE_STATE_OPTIONAL 0x80000000u

#define DMA_ENGINE_STATE_PAGE 1u
#define DMA_ENGINE_STATE_REGISTERS 2u
#define DMA_ENGINE_STATE_MSIX_TABLE 3u /* as it is in BAR 0 */
#define DMA_ENGINE_STATE_WORK 4u
#define DMA_ENGINE_STATE_STATISTICS (5u | DMA_ENGINE_STATE_OPTIONAL) /* struct dma_engine_stats */
#define DMA_ENGINE_STATE_END 255u

struct dma_engine_state_page {
    uint64_t offset; /* in BAR 2, a multiple of the page size, and not 0 */
    uint8_t data[DMA_ENGINE_STATE_PAGE_SIZE];
};

/* The registers of BAR 0 that hold something, by their names there. */
struct dma_engine_state_registers {
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
    struct dma_engine_desc desc;
};

/* What the device was doing; the work on ring entry ring_head, say. */
struct dma_engine_state_work {
    uint32_t doorbell; /* 1: rung, and not yet looked at */
    uint32_t origin;   /* of the descriptor: 0 there is none, 1 registers, 2 ring */
    uint64_t progress; /* bytes of it that are done */
    struct dma_engine_desc desc; /* as it was when the work began; result: the sum so far */
};

struct dma_engine_state_end {
    uint64_t checksum; /* 64-bit FNV-1a of every byte of the stream before this one */
};

_Static_assert(sizeof(struct dma_engine_state_header) == 32, "no padding");
_Static_assert(sizeof(struct dma_engine_state_page) == 4104, "no padding");
_Static_assert(sizeof(struct dma_engine_state_registers) == 112, "no padding");
_Static_assert(sizeof(struct dma_engine_state_work) == 80, "no padding");

#endif /* DMA_ENGINE_STATE_H */
