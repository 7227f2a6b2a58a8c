/*
 * What the driver of the example device dma-engine has to know: its PCI id, its
 * registers, and its descriptors. All numbers are little endian.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef DMA_ENGINE_H
#define DMA_ENGINE_H

#include <stdint.h>

/* Vendor 0x1234 is nobody's; emulated devices have used it for long. */
#define DMA_ENGINE_VENDOR_ID 0x1234
#define DMA_ENGINE_DEVICE_ID 0xd3a0

/* PCI class 08.01.00: system peripheral, DMA controller. */
#define DMA_ENGINE_BASE_CLASS 0x08
#define DMA_ENGINE_SUB_CLASS 0x01

#define DMA_ENGINE_NR_VECTORS 4

/*
 * BAR 0: registers of 4 bytes (of 8, where the table says 64). Accesses are
 * aligned to 4 and a multiple of 4 long; others fail. Offsets not listed read zero
 * and ignore writes.
 * At 0x1000 and 0x1800 are the MSI-X table and the pending bits.
 */
#define DMA_ENGINE_BAR0_SIZE 0x2000
#define DMA_ENGINE_MSIX_TABLE 0x1000
#define DMA_ENGINE_MSIX_PBA 0x1800

#define DMA_ENGINE_REG_ID 0x00         /* r   DMA_ENGINE_ID */
#define DMA_ENGINE_REG_VERSION 0x04    /* r   DMA_ENGINE_VERSION */
#define DMA_ENGINE_REG_CONTROL 0x08    /* rw  DMA_ENGINE_CONTROL_... */
#define DMA_ENGINE_REG_STATUS 0x0c     /* r   DMA_ENGINE_STATUS_... */
#define DMA_ENGINE_REG_IRQ_STATUS 0x10 /* r   DMA_ENGINE_IRQ_...; write 1 to acknowledge */
#define DMA_ENGINE_REG_IRQ_ENABLE 0x14 /* rw  which of them interrupt */
#define DMA_ENGINE_REG_COMPLETED 0x18  /* r   descriptors done since the reset, failed ones included */
#define DMA_ENGINE_REG_ERROR 0x1c      /* r   enum dma_engine_status of the last failure; any write clears */
#define DMA_ENGINE_REG_RESULT 0x20     /* r64 result of the last descriptor */
#define DMA_ENGINE_REG_DOORBELL 0x28   /* w   any value: execute the descriptor at DESC */
#define DMA_ENGINE_REG_RING_BASE 0x30  /* rw64 guest address of the ring, a multiple of 64 */
#define DMA_ENGINE_REG_RING_SIZE 0x38  /* rw  entries of the ring, up to DMA_ENGINE_RING_MAX; 0: no ring */
#define DMA_ENGINE_REG_RING_HEAD 0x3c  /* r   next entry that the device executes */
#define DMA_ENGINE_REG_RING_TAIL 0x40  /* rw  first entry that it does not; a write starts the device */
#define DMA_ENGINE_REG_DESC 0x80       /* rw  struct dma_engine_desc */

#define DMA_ENGINE_ID 0x45414d44u /* "DMAE" */
#define DMA_ENGINE_VERSION 0x00010000u
#define DMA_ENGINE_RING_MAX 4096u

#define DMA_ENGINE_CONTROL_ENABLE 0x00000001u /* without it nothing is executed */
#define DMA_ENGINE_CONTROL_RESET 0x80000000u  /* all registers but the MSI-X table to 0 */

#define DMA_ENGINE_STATUS_BUSY 0x00000001u  /* there is something to execute */
#define DMA_ENGINE_STATUS_ERROR 0x00000002u /* REG_ERROR is not 0 */

#define DMA_ENGINE_IRQ_DONE 0x00000001u  /* a descriptor with DMA_ENGINE_F_IRQ has completed */
#define DMA_ENGINE_IRQ_ERROR 0x00000002u /* a descriptor or the ring has failed */
#define DMA_ENGINE_IRQ_ALL 0x00000003u

/*
 * BAR 2: the device's own memory. Page 0 cannot be mapped: it reads as struct
 * dma_engine_stats, made up at the time of the access, and ignores writes. The
 * rest is plain memory that the client may map.
 */
#define DMA_ENGINE_BAR2_SIZE 0x4000000
#define DMA_ENGINE_MEMORY_START 0x1000

struct dma_engine_stats {
    uint64_t descriptors; /* completed, failed ones included */
    uint64_t failed;
    uint64_t bytes_read; /* from the guest's memory */
    uint64_t bytes_written;
};

enum dma_engine_op {
    DMA_ENGINE_OP_NOP = 0,
    DMA_ENGINE_OP_COPY = 1,     /* len bytes from src to dst, which must not overlap */
    DMA_ENGINE_OP_FILL = 2,     /* the low byte of value, len times, to dst */
    DMA_ENGINE_OP_PATTERN = 3,  /* byte i of dst becomes the low byte of value + i */
    DMA_ENGINE_OP_CHECKSUM = 4, /* result: 64-bit FNV-1a of len bytes at src */
};

/* Flags of a descriptor. */
#define DMA_ENGINE_F_IRQ 0x01u       /* set DMA_ENGINE_IRQ_DONE when done */
#define DMA_ENGINE_F_SRC_LOCAL 0x02u /* src is an offset in BAR 2, not a guest address */
#define DMA_ENGINE_F_DST_LOCAL 0x04u /* likewise dst */
/* How to reach the guest's memory; without one of these: mapped where possible. */
#define DMA_ENGINE_F_MESSAGE 0x10u /* by messages to the client, even where it is mapped */
#define DMA_ENGINE_F_DIRECT 0x20u  /* by vfu_sgl_read and vfu_sgl_write with VFU_SGL_DIRECT_ACCESS */

enum dma_engine_status {
    DMA_ENGINE_PENDING = 0,
    DMA_ENGINE_DONE = 1,
    DMA_ENGINE_ERR_OP = 2,          /* unknown op or flag */
    DMA_ENGINE_ERR_VECTOR = 3,      /* no such vector */
    DMA_ENGINE_ERR_SRC = 4,         /* src is not (all) there, or must not be read */
    DMA_ENGINE_ERR_DST = 5,         /* dst is not (all) there, or must not be written */
    DMA_ENGINE_ERR_TRANSFER = 6,    /* the client failed to do its part of a message */
    DMA_ENGINE_ERR_BUSY = 7,        /* doorbell rung while the last one was still being done */
    DMA_ENGINE_ERR_RING = 8,        /* base, size, tail, or an entry that can't be read or written */
};

/* A unit of work, in the registers at DMA_ENGINE_REG_DESC or in the ring. */
struct dma_engine_desc {
    uint32_t op;    /* enum dma_engine_op */
    uint32_t flags; /* DMA_ENGINE_F_... */
    uint64_t src;
    uint64_t dst;
    uint64_t len;   /* bytes; 0 is fine */
    uint64_t value;
    uint32_t vector; /* MSI-X vector of the interrupt */
    /* Written by the device when the descriptor is done: */
    uint32_t status; /* enum dma_engine_status */
    uint64_t result;
    uint64_t reserved;
};

_Static_assert(sizeof(struct dma_engine_desc) == 64, "descriptors are 64 bytes");

#endif /* DMA_ENGINE_H */
