/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What all PCI capabilities start with, and the vendor-specific ones.
 *
 * Sections refer to the PCI Local Bus Specification 3.0 ("PCI") and the PCI
 * Express Base Specification ("PCIe").
 */
#ifndef LIB_VFIO_USER_PCI_CAPS_COMMON_H
#define LIB_VFIO_USER_PCI_CAPS_COMMON_H

#include <linux/pci_regs.h>
#include <stddef.h>
#include <stdint.h>

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

/* Start of a capability (PCI 6.7). The library links the list: it sets next. */
struct cap_hdr {
	uint8_t id;   /* PCI_CAP_ID_* */
	uint8_t next; /* offset of the next capability, 0: none */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct cap_hdr, 2);

/* Vendor-specific capability, PCI_CAP_ID_VNDR (PCI 6.7, PCIe 7.9.4). */
__extension__ struct vsc {
	struct cap_hdr hdr;
	uint8_t size;   /* of the capability, these three bytes included */
	uint8_t data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vsc, 3);

/* Start of an extended capability (PCIe 7.6.3). The library sets next. */
struct pcie_ext_cap_hdr {
	uint32_t id:16;     /* PCI_EXT_CAP_ID_* */
	uint32_t version:4;
	uint32_t next:12;   /* offset of the next capability, 0: none */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pcie_ext_cap_hdr, 4);

/* Vendor-specific extended capability, PCI_EXT_CAP_ID_VNDR (PCIe 7.9.5). */
__extension__ struct pcie_ext_cap_vsc_hdr {
	struct pcie_ext_cap_hdr hdr;
	uint32_t id:16;  /* chosen by the vendor */
	uint32_t rev:4;
	uint32_t len:12; /* of the capability, these eight bytes included */
	uint8_t  data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pcie_ext_cap_vsc_hdr, 8);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* LIB_VFIO_USER_PCI_CAPS_COMMON_H */
