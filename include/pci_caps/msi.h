/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The Message Signaled Interrupts capability (PCI Local Bus Specification 3.0,
 * section 6.8.1), in the form with a 64-bit address and per-vector masks.
 */
#ifndef LIB_VFIO_USER_PCI_CAPS_MSI_H
#define LIB_VFIO_USER_PCI_CAPS_MSI_H

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

#define VFIO_USER_PCI_CAP_MSI_SIZEOF 24

/* 0x02: message control (6.8.1.3). */
struct mc {
	unsigned int msie:1; /* MSI enable */
	unsigned int mmc:3;  /* multiple message capable: 2^mmc vectors, up to 5 */
	unsigned int mme:3;  /* multiple message enable: the system grants 2^mme vectors */
	unsigned int c64:1;  /* capable of 64-bit addresses */
	unsigned int pvm:1;  /* capable of per-vector masking */
	unsigned int res1:7;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct mc, 2);

/* 0x04: message address (6.8.1.4). */
struct ma {
	unsigned int res1:2;
	unsigned int addr:30; /* bits 31:2 */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct ma, 4);

/* PCI_CAP_ID_MSI */
struct msicap {
	struct cap_hdr hdr;
	struct mc mc;
	struct ma ma;
	uint32_t  mua;     /* 0x08 message upper address (6.8.1.5) */
	uint16_t  md;      /* 0x0c message data (6.8.1.6) */
	uint16_t  padding;
	uint32_t  mmask;   /* 0x10 mask bits, one for each vector (6.8.1.7) */
	uint32_t  mpend;   /* 0x14 pending bits, one for each vector (6.8.1.8) */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct msicap, VFIO_USER_PCI_CAP_MSI_SIZEOF);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* LIB_VFIO_USER_PCI_CAPS_MSI_H */
