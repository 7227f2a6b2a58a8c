/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The MSI-X capability (PCI Local Bus Specification 3.0, section 6.8.2). The
 * vector table and the pending bit array lie in memory BARs of the device.
 */
#ifndef LIB_VFIO_USER_PCI_CAPS_MSIX_H
#define LIB_VFIO_USER_PCI_CAPS_MSIX_H

#include <stdint.h>
#include <linux/pci_regs.h>
#include "common.h"

/* Layouts are checked where the header is used: odd compiler flags show here. */
#if defined(SWIG) /* which knows no assertions */
#define VFU_ASSERT_SIZE(type, size)
#elif defined(__cplusplus)
#define VFU_ASSERT_SIZE(type, size) static_assert(sizeof(type) == (size), #type)
#else
#define VFU_ASSERT_SIZE(type, size) __extension__ _Static_assert(sizeof(type) == (size), #type)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 0x02: message control (6.8.2.3). */
struct mxc {
	uint16_t ts:11;      /* table size: number of vectors minus 1 */
	uint16_t reserved:3;
	uint16_t fm:1;       /* function mask: all vectors are masked */
	uint16_t mxe:1;      /* MSI-X enable */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mxc, 2);

/* 0x04: where the vector table is (6.8.2.4). */
struct mtab {
	uint32_t tbir:3; /* number of the BAR */
	uint32_t to:29;  /* offset in it, in units of 8 bytes */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mtab, 4);

/* 0x08: where the pending bit array is (6.8.2.5). */
struct mpba {
	uint32_t pbir:3;  /* number of the BAR */
	uint32_t pbao:29; /* offset in it, in units of 8 bytes */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mpba, 4);

/* PCI_CAP_ID_MSIX. Aligned, and packed by its parts: Rust, so bindgen, knows no type that is both. */
struct msixcap {
	struct cap_hdr hdr;
	struct mxc  mxc;
	struct mtab mtab;
	struct mpba mpba;
} __attribute__((aligned(4)));
VFU_ASSERT_SIZE(struct msixcap, PCI_CAP_MSIX_SIZEOF);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* LIB_VFIO_USER_PCI_CAPS_MSIX_H */
