/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The PCI Express capability (PCI Express Base Specification, section 7.5.3).
 *
 * Sections below are those of version 5.0. Registers without fields here have
 * one field, "stuff", that is all of the register; <linux/pci_regs.h> has masks
 * for their bits (PCI_EXP_*).
 */
#ifndef LIB_VFIO_USER_PCI_CAPS_PX_H
#define LIB_VFIO_USER_PCI_CAPS_PX_H

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

#define VFIO_USER_PCI_CAP_EXP_SIZEOF 60

/* 0x02: PCI Express capabilities (7.5.3.2). */
struct pxcaps {
	uint16_t ver:4;  /* capability version, 2 */
	uint16_t dpt:4;  /* device/port type, PCI_EXP_TYPE_*; 0: endpoint */
	uint16_t si:1;   /* slot implemented */
	uint16_t imn:5;  /* interrupt message number */
	uint16_t res1:2;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxcaps, 2);

/* 0x04: device capabilities (7.5.3.3). */
struct pxdcap {
	uint32_t mps:3;   /* max payload size supported: 128 << mps bytes */
	uint32_t pfs:2;   /* phantom functions supported */
	uint32_t etfs:1;  /* extended tag field supported */
	uint32_t l0sl:3;  /* endpoint L0s acceptable latency */
	uint32_t l1l:3;   /* endpoint L1 acceptable latency */
	uint32_t res1:3;
	uint32_t rer:1;   /* role-based error reporting */
	uint32_t res2:2;
	uint32_t csplv:8; /* captured slot power limit value */
	uint32_t cspls:2; /* captured slot power limit scale */
	uint32_t flrc:1;  /* capable of function level reset */
	uint32_t res3:3;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxdcap, 4);

/* 0x08: device control (7.5.3.4). */
union pxdc {
	uint16_t raw;
	__extension__ struct {
		uint16_t cere:1;  /* correctable error reporting enable */
		uint16_t nfere:1; /* non-fatal error reporting enable */
		uint16_t fere:1;  /* fatal error reporting enable */
		uint16_t urre:1;  /* unsupported request reporting enable */
		uint16_t ero:1;   /* enable relaxed ordering */
		uint16_t mps:3;   /* max payload size: 128 << mps bytes */
		uint16_t ete:1;   /* extended tag field enable */
		uint16_t pfe:1;   /* phantom functions enable */
		uint16_t appme:1; /* aux power PM enable */
		uint16_t ens:1;   /* enable no snoop */
		uint16_t mrrs:3;  /* max read request size: 128 << mrrs bytes */
		uint16_t iflr:1;  /* initiate function level reset; reads as 0 */
	} __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union pxdc, 2);

/* 0x0a: device status (7.5.3.5). */
struct pxds {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxds, 2);

/* 0x0c: link capabilities (7.5.3.6). */
struct pxlcap {
	uint32_t stuff:32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxlcap, 4);

/* 0x10: link control (7.5.3.7). */
union pxlc {
	uint16_t raw;
	__extension__ struct {
		uint16_t aspmc:2;     /* ASPM control */
		uint16_t rsvdp1:1;
		uint16_t rcb:1;       /* read completion boundary */
		uint16_t ld:1;        /* link disable */
		uint16_t rl:1;        /* retrain link */
		uint16_t ccc:1;       /* common clock configuration */
		uint16_t es:1;        /* extended synch */
		uint16_t clkreq_en:1; /* enable clock power management */
		uint16_t hawd:1;      /* hardware autonomous width disable */
		uint16_t lbmie:1;     /* link bandwidth management interrupt enable */
		uint16_t labie:1;     /* link autonomous bandwidth interrupt enable */
		uint16_t rsvdp2:4;
	} __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union pxlc, 2);

/* 0x12: link status (7.5.3.8). */
struct pxls {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxls, 2);

/* 0x14: slot capabilities (7.5.3.9). */
struct pxscap {
	uint32_t stuff:32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxscap, 4);

/* 0x18: slot control (7.5.3.10). */
struct pxsc {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxsc, 2);

/* 0x1a: slot status (7.5.3.11). */
struct pxss {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxss, 2);

/* 0x1c: root control (7.5.3.12). */
struct pxrc {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxrc, 2);

/* 0x1e: root capabilities (7.5.3.13). */
struct pxrcap {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxrcap, 2);

/* 0x20: root status (7.5.3.14). */
struct pxrs {
	uint32_t stuff:32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxrs, 4);

/* 0x24: device capabilities 2 (7.5.3.15). */
struct pxdcap2 {
	uint32_t ctrs:4;   /* completion timeout ranges supported */
	uint32_t ctds:1;   /* completion timeout disable supported */
	uint32_t arifs:1;  /* ARI forwarding supported */
	uint32_t aors:1;   /* AtomicOp routing supported */
	uint32_t aocs32:1; /* 32-bit AtomicOp completer supported */
	uint32_t aocs64:1; /* 64-bit AtomicOp completer supported */
	uint32_t ccs128:1; /* 128-bit CAS completer supported */
	uint32_t nprpr:1;  /* no RO-enabled PR-PR passing */
	uint32_t ltrs:1;   /* LTR mechanism supported */
	uint32_t tphcs:2;  /* TPH completer supported */
	uint32_t ln:2;     /* LN system cache line size */
	uint32_t tcs:1;    /* 10-bit tag completer supported */
	uint32_t trs:1;    /* 10-bit tag requester supported */
	uint32_t obffs:2;  /* OBFF supported */
	uint32_t effs:1;   /* extended Fmt field supported */
	uint32_t eetps:1;  /* end-end TLP prefix supported */
	uint32_t meetp:2;  /* max end-end TLP prefixes */
	uint32_t eprs:2;   /* emergency power reduction supported */
	uint32_t eprir:1;  /* emergency power reduction initialization required */
	uint32_t res1:1;
	uint32_t dmwcs:1;  /* DMWr completer supported */
	uint32_t dmwls:2;  /* DMWr lengths supported */
	uint32_t frss:1;   /* FRS supported */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxdcap2, 4);

/* 0x28: device control 2 (7.5.3.16). */
union pxdc2 {
	uint16_t raw;
	__extension__ struct {
		uint32_t comp_timeout:4;             /* completion timeout value */
		uint32_t comp_timout_dis:1;          /* completion timeout disable */
		uint32_t ari:1;                      /* ARI forwarding enable */
		uint32_t atomic_req:1;               /* AtomicOp requester enable */
		uint32_t atomic_egress_block:1;      /* AtomicOp egress blocking */
		uint32_t ido_req_en:1;               /* IDO request enable */
		uint32_t ido_cmp_en:1;               /* IDO completion enable */
		uint32_t ltr_en:1;                   /* LTR mechanism enable */
		uint32_t obff_en:2;                  /* as named; see the note */
		uint32_t end_end_tlp_prefix_block:1; /* as named; see the note */
		/*
		 * Note: in the register OBFF enable is bits 14:13 and end-end TLP
		 * prefix blocking is bit 15. The last two fields are two bits below
		 * that, and are kept so for compatibility: take raw and
		 * PCI_EXP_DEVCTL2_OBFF_MSGA_EN instead.
		 */
	} __attribute__((packed));
} __attribute__((packed));
VFU_ASSERT_SIZE(union pxdc2, 2);

/* 0x2a: device status 2 (7.5.3.17). */
struct pxds2 {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxds2, 2);

/* 0x2c: link capabilities 2 (7.5.3.18). */
struct pxlcap2 {
	uint32_t stuff:32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxlcap2, 4);

/* 0x30: link control 2 (7.5.3.19). */
struct pxlc2 {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxlc2, 2);

/* 0x32: link status 2 (7.5.3.20). */
struct pxls2 {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxls2, 2);

/* 0x34: slot capabilities 2 (7.5.3.21). */
struct pxscap2 {
	uint32_t stuff:32;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxscap2, 4);

/* 0x38: slot control 2 (7.5.3.22). */
struct pxsc2 {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxsc2, 2);

/* 0x3a: slot status 2 (7.5.3.23). */
struct pxss2 {
	uint16_t stuff:16;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxss2, 2);

/* PCI_CAP_ID_EXP */
struct pxcap {
	struct cap_hdr hdr;
	struct pxcaps  pxcaps;
	struct pxdcap  pxdcap;
	union  pxdc    pxdc;
	struct pxds    pxds;
	struct pxlcap  pxlcap;
	union  pxlc    pxlc;
	struct pxls    pxls;
	struct pxscap  pxscap;
	struct pxsc    pxsc;
	struct pxss    pxss;
	struct pxrc    pxrc;
	struct pxrcap  pxrcap;
	struct pxrs    pxrs;
	struct pxdcap2 pxdcap2;
	union  pxdc2   pxdc2;
	struct pxds2   pxds2;
	struct pxlcap2 pxlcap2;
	struct pxlc2   pxlc2;
	struct pxls2   pxls2;
	struct pxscap2 pxscap2;
	struct pxsc2   pxsc2;
	struct pxss2   pxss2;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct pxcap, VFIO_USER_PCI_CAP_EXP_SIZEOF);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* LIB_VFIO_USER_PCI_CAPS_PX_H */
