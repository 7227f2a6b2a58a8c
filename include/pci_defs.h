/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The PCI configuration space, as structures over its bytes.
 *
 * Registers and field names are those of the PCI Local Bus Specification 3.0
 * ("PCI"), chapter 6, and of the PCI Express Base Specification ("PCIe"),
 * section 7.5.1; chapters and sections below refer to them. Offsets are in
 * <linux/pci_regs.h>, too. Each register can be taken as a whole (raw) or by
 * its fields. Configuration space is little-endian, as are the hosts served.
 */
#ifndef LIBVFIO_USER_PCI_DEFS_H
#define LIBVFIO_USER_PCI_DEFS_H

#include <stdint.h>
#include <stdbool.h>
#include <linux/pci_regs.h>

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

/* 0x2c: subsystem identification (PCI 6.2.4). */
typedef union {
	uint32_t raw;
	__extension__ struct {
		uint16_t vid; /* subsystem vendor */
		uint16_t sid; /* subsystem */
	} __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_ss_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_ss_t, 4);

/* 0x0f: built-in self test (PCI 6.2.4). */
typedef union {
	uint8_t raw;
} __attribute__((packed)) vfu_pci_hdr_bist_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_bist_t, 1);

/* vfu_bar_t.mem.locatable: where a memory BAR may be placed (PCI 6.2.5.1). */
#define PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_32 0x0 /* anywhere below 4 GiB */
#define PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_1M 0x1 /* below 1 MiB; PCI 2.1 and older */
#define PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_64 0x2 /* anywhere; the next BAR is the upper half */

/* 0x10 to 0x24: a base address register (PCI 6.2.5.1). */
typedef union {
	uint32_t raw;
	__extension__ union {
		struct {
			unsigned int region_type:1;   /* 0: memory */
			unsigned int locatable:2;     /* PCI_BASE_ADDRESS_MEM_TYPE_LOCATABLE_* */
			unsigned int prefetchable:1;
			unsigned int base_address:28; /* bits 31:4 of the address */
		} __attribute__((packed)) mem;
		struct {
			unsigned int region_type:1;   /* 1: I/O ports */
			unsigned int reserved:1;
			unsigned int base_address:30; /* bits 31:2 of the address */
		} __attribute__((packed)) io;
	} __attribute__((packed));
} __attribute__((packed)) vfu_bar_t;
VFU_ASSERT_SIZE(vfu_bar_t, 4);

/* 0x0e: header type (PCI 6.2.1). */
typedef union {
	uint8_t raw;
} __attribute__((packed)) vfu_pci_hdr_htype_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_htype_t, 1);

/* 0x09: class code (PCI 6.2.1). */
typedef union {
	uint8_t raw[3];
	__extension__ struct {
		uint8_t pi;  /* programming interface */
		uint8_t scc; /* sub-class code */
		uint8_t bcc; /* base class code */
	} __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_cc_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_cc_t, 3);

/* 0x06: device status (PCI 6.2.3, PCIe 7.5.1.1.4). */
typedef union {
	uint16_t raw;
	__extension__ struct {
		unsigned int res1:3;
		unsigned int is:1;   /* interrupt status: INTx is pending */
		unsigned int cl:1;   /* there is a list of capabilities */
		unsigned int c66:1;  /* capable of 66 MHz */
		unsigned int res2:1;
		unsigned int fbc:1;  /* capable of fast back-to-back */
		unsigned int dpd:1;  /* master data parity error detected */
		unsigned int devt:2; /* DEVSEL timing */
		unsigned int sta:1;  /* signaled target abort */
		unsigned int rta:1;  /* received target abort */
		unsigned int rma:1;  /* received master abort */
		unsigned int sse:1;  /* signaled system error */
		unsigned int dpe:1;  /* detected parity error */
	} __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_sts_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_sts_t, 2);

/* 0x04: command (PCI 6.2.2, PCIe 7.5.1.1.3). */
typedef union {
	uint16_t raw;
	__extension__ struct {
		uint8_t iose:1; /* I/O space enable */
		uint8_t mse:1;  /* memory space enable */
		uint8_t bme:1;  /* bus master enable */
		uint8_t sce:1;  /* special cycle enable */
		uint8_t mwie:1; /* memory write and invalidate enable */
		uint8_t vga:1;  /* VGA palette snoop */
		uint8_t pee:1;  /* parity error response enable */
		uint8_t zero:1;
		uint8_t see:1;  /* SERR# enable */
		uint8_t fbe:1;  /* fast back-to-back enable */
		uint8_t id:1;   /* interrupt (INTx) disable */
		uint8_t res1:5;
	} __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_cmd_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_cmd_t, 2);

/* 0x00: device identification (PCI 6.2.1). */
typedef union {
	uint32_t raw;
	__extension__ struct {
		uint16_t vid; /* vendor */
		uint16_t did; /* device */
	} __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_id_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_id_t, 4);

/* 0x3c: interrupt line and pin (PCI 6.2.4). */
typedef union {
	uint16_t raw;
	__extension__ struct {
		uint8_t iline; /* written by the system, means nothing to the device */
		uint8_t ipin;  /* 0: no INTx; 1: INTA# */
	} __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_intr_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_intr_t, 2);

/* Number of base address registers of a device with header type 0. */
#define PCI_BARS_NR 6

/* The header of configuration space, type 0 (PCI 6.1, PCIe 7.5.1.2). */
typedef union {
	uint8_t raw[PCI_STD_HEADER_SIZEOF];
	__extension__ struct {
		vfu_pci_hdr_id_t    id;                /* 0x00 */
		vfu_pci_hdr_cmd_t   cmd;               /* 0x04 */
		vfu_pci_hdr_sts_t   sts;               /* 0x06 */
		uint8_t             rid;               /* 0x08 revision */
		vfu_pci_hdr_cc_t    cc;                /* 0x09 */
		uint8_t             cls;               /* 0x0c cache line size */
		uint8_t             mlt;               /* 0x0d master latency timer */
		vfu_pci_hdr_htype_t htype;             /* 0x0e */
		vfu_pci_hdr_bist_t  bist;              /* 0x0f */
		vfu_bar_t           bars[PCI_BARS_NR]; /* 0x10 */
		uint32_t            ccptr;             /* 0x28 CardBus CIS pointer */
		vfu_pci_hdr_ss_t    ss;                /* 0x2c */
		uint32_t            erom;              /* 0x30 expansion ROM base address */
		uint8_t             cap;               /* 0x34 offset of the first capability */
		uint8_t             res1[7];           /* 0x35 */
		vfu_pci_hdr_intr_t  intr;              /* 0x3c */
		uint8_t             mgnt;              /* 0x3e minimum grant */
		uint8_t             mlat;              /* 0x3f maximum latency */
	} __attribute__((packed));
} __attribute__((packed)) vfu_pci_hdr_t;
VFU_ASSERT_SIZE(vfu_pci_hdr_t, 64);

/*
 * Configuration space: 256 bytes that every device has, and for PCI-X 2 and
 * PCI Express devices 3840 more, from offset 0x100 on.
 */
__extension__ typedef struct {
	union {
		uint8_t       raw[PCI_CFG_SPACE_SIZE];
		vfu_pci_hdr_t hdr;
	} __attribute__((packed));
	uint8_t extended[];
} __attribute__((packed)) vfu_pci_config_space_t;
VFU_ASSERT_SIZE(vfu_pci_config_space_t, 256);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* LIBVFIO_USER_PCI_DEFS_H */
