/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The Device Serial Number extended capability (PCI Express Base Specification,
 * section 7.9.3). All of it is read-only to the client.
 */
#ifndef LIB_VFIO_USER_PCI_CAPS_DSN_H
#define LIB_VFIO_USER_PCI_CAPS_DSN_H

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

/* PCI_EXT_CAP_ID_DSN */
struct dsncap {
	struct pcie_ext_cap_hdr hdr;
	uint32_t sn_lo; /* bits 31:0 of the serial number, an EUI-64 */
	uint32_t sn_hi; /* bits 63:32 */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct dsncap, 12);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* LIB_VFIO_USER_PCI_CAPS_DSN_H */
