/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The Power Management capability (PCI Bus Power Management Interface
 * Specification 1.2, chapter 3; PCI Express Base Specification, section 7.5.2).
 */
#ifndef LIB_VFIO_USER_PCI_CAPS_PM_H
#define LIB_VFIO_USER_PCI_CAPS_PM_H

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

/* 0x02: power management capabilities, PMC (3.2.3). */
struct pc {
	uint16_t vs:3;   /* version of the specification that is followed; 3 for 1.2 */
	uint16_t pmec:1; /* PME# needs the PCI clock */
	uint16_t res:1;
	uint16_t dsi:1;  /* device specific initialization is needed */
	uint16_t auxc:3; /* auxiliary current, as encoded in 3.2.3 */
	uint16_t d1s:1;  /* D1 is supported */
	uint16_t d2s:1;  /* D2 is supported */
	uint16_t psup:5; /* PME# support: bit n for state D0, D1, D2, D3hot, D3cold */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pc, 2);

/* 0x04: power management control and status, PMCSR (3.2.4). */
__extension__ struct pmcs {
	union {
		uint16_t raw;
		__extension__ struct {
			uint16_t ps:2;     /* power state, D0 to D3hot */
			uint16_t res1:1;
			uint16_t nsfrst:1; /* no soft reset: D3hot to D0 keeps the state */
			uint16_t res2:4;
			uint16_t pmee:1;   /* PME# enable */
			uint16_t dse:4;    /* data select: what the data register shows */
			uint16_t dsc:2;    /* data scale */
			uint16_t pmes:1;   /* PME# status */
		} __attribute__((packed));
	} __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pmcs, 2);

/* PCI_CAP_ID_PM */
struct pmcap {
	struct cap_hdr hdr;
	struct pc   pc;
	struct pmcs pmcs;
	uint8_t     pmcsr_bse; /* 0x06 bridge support extensions (3.2.5) */
	uint8_t     data;      /* 0x07 data (3.2.6) */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pmcap, PCI_PM_SIZEOF);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* LIB_VFIO_USER_PCI_CAPS_PM_H */
