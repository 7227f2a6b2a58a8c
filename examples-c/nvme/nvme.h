/*
 * What the example nvme knows of NVM Express: registers, commands, status codes and
 * the structures that travel through the guest's memory, as revision 1.4 of the NVM
 * Express Base Specification defines them, as far as this controller has them. Names
 * are the specification's, numbers are little endian, sections are those of 1.4.
 *
 * At the end: the state of a controller, as it goes from one process to another.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef NVME_H
#define NVME_H

#include <assert.h>
#include <stdint.h>

/* PCI class 01.08.02: mass storage, non-volatile memory, NVM Express. */
#define NVME_BASE_CLASS 0x01
#define NVME_SUB_CLASS 0x08
#define NVME_PROG_IF 0x02

/* What this controller is made of. */
#define NVME_NR_QUEUES 33      /* pairs; number 0 is the admin queues */
#define NVME_NR_VECTORS 33     /* MSI-X */
#define NVME_MAX_ENTRIES 1024  /* of an I/O queue */
#define NVME_PAGE_SIZE 4096    /* the one size of memory pages */
#define NVME_LBA_SHIFT 9       /* the one size of blocks */
#define NVME_MDTS 7            /* a command moves 2^7 pages at most */
#define NVME_NR_AERS 4         /* Asynchronous Event Requests at a time */
#define NVME_NR_ABORTS 4       /* Abort commands at a time */
#define NVME_NR_ERRORS 4       /* entries of the Error Information log */

/*
 * BAR 0: registers (3.1), and from 0x1000 on, in a page of their own, the doorbells:
 * the tail of submission queue y at 2y, the head of completion queue y at 2y + 1.
 */
#define NVME_BAR0_SIZE 0x4000 /* the smallest that the specification allows */
#define NVME_REG_CAP 0x00     /* r   64 bits: controller capabilities */
#define NVME_REG_VS 0x08      /* r   version */
#define NVME_REG_INTMS 0x0c   /* rw1s interrupt mask set */
#define NVME_REG_INTMC 0x10   /* rw1c interrupt mask clear */
#define NVME_REG_CC 0x14      /* rw  controller configuration */
#define NVME_REG_CSTS 0x1c    /* r   controller status */
#define NVME_REG_AQA 0x24     /* rw  admin queue attributes */
#define NVME_REG_ASQ 0x28     /* rw  64 bits: admin submission queue base address */
#define NVME_REG_ACQ 0x30     /* rw  64 bits: admin completion queue base address */
#define NVME_DOORBELLS 0x1000

/* BAR 4: the MSI-X table and the pending bits. */
#define NVME_MSIX_BAR 4
#define NVME_MSIX_SIZE 0x1000
#define NVME_MSIX_TABLE_SIZE (NVME_NR_VECTORS * 16)
#define NVME_MSIX_PBA 0x800

#define NVME_CAP_CQR (1ull << 16)    /* queues have to be contiguous */
#define NVME_CAP_TO(x) ((uint64_t)(x) << 24) /* in units of 500 ms */
#define NVME_CAP_CSS_NVM (1ull << 37)

#define NVME_VERSION 0x00010400

#define NVME_CC_EN (1u << 0)
#define NVME_CC_CSS (7u << 4)
#define NVME_CC_MPS (15u << 7)
#define NVME_CC_AMS (7u << 11)
#define NVME_CC_SHN (3u << 14)
#define NVME_CC_IOSQES(cc) ((cc) >> 16 & 15)
#define NVME_CC_IOCQES(cc) ((cc) >> 20 & 15)
#define NVME_CC_ALL 0x00fffff1u

#define NVME_CSTS_RDY (1u << 0)
#define NVME_CSTS_CFS (1u << 1)
#define NVME_CSTS_SHST (3u << 2)
#define NVME_CSTS_SHST_OCCURRING (1u << 2)
#define NVME_CSTS_SHST_COMPLETE (2u << 2)

#define NVME_AQA_ASQS(aqa) ((aqa) & 0xfff)
#define NVME_AQA_ACQS(aqa) ((aqa) >> 16 & 0xfff)
#define NVME_AQA_ALL 0x0fff0fffu

/* Submission queue entry (4.2). */
struct nvme_command {
    uint8_t opcode;
    uint8_t flags; /* FUSE, PSDT */
    uint16_t cid;
    uint32_t nsid;
    uint32_t cdw2;
    uint32_t cdw3;
    uint64_t mptr;
    uint64_t prp1;
    uint64_t prp2;
    uint32_t cdw10;
    uint32_t cdw11;
    uint32_t cdw12;
    uint32_t cdw13;
    uint32_t cdw14;
    uint32_t cdw15;
};
static_assert(sizeof(struct nvme_command) == 64, "4.2");

#define NVME_FLAGS_FUSE 0x03
#define NVME_FLAGS_PSDT 0xc0 /* 0: PRPs */

/* Completion queue entry (4.6). */
struct nvme_completion {
    uint32_t result; /* command specific */
    uint32_t reserved;
    uint16_t sq_head;
    uint16_t sq_id;
    uint16_t cid;
    uint16_t status; /* bit 0: phase */
};
static_assert(sizeof(struct nvme_completion) == 16, "4.6");

/* The entries' sizes as CC has them: powers of two. */
#define NVME_SQES 6
#define NVME_CQES 4

enum nvme_admin_opcode {
    NVME_ADMIN_DELETE_SQ = 0x00,
    NVME_ADMIN_CREATE_SQ = 0x01,
    NVME_ADMIN_GET_LOG_PAGE = 0x02,
    NVME_ADMIN_DELETE_CQ = 0x04,
    NVME_ADMIN_CREATE_CQ = 0x05,
    NVME_ADMIN_IDENTIFY = 0x06,
    NVME_ADMIN_ABORT = 0x08,
    NVME_ADMIN_SET_FEATURES = 0x09,
    NVME_ADMIN_GET_FEATURES = 0x0a,
    NVME_ADMIN_ASYNC_EVENT = 0x0c,
};

enum nvme_io_opcode {
    NVME_IO_FLUSH = 0x00,
    NVME_IO_WRITE = 0x01,
    NVME_IO_READ = 0x02,
    NVME_IO_WRITE_ZEROES = 0x08,
    NVME_IO_DSM = 0x09,
};

/* Status (4.6.1): the type in bits 10:8, the code in bits 7:0. */
enum nvme_status {
    NVME_SUCCESS = 0x000,
    NVME_INVALID_OPCODE = 0x001,
    NVME_INVALID_FIELD = 0x002,
    NVME_DATA_TRANSFER_ERROR = 0x004,
    NVME_ABORT_REQUESTED = 0x007,
    NVME_INVALID_NAMESPACE = 0x00b,
    NVME_COMMAND_SEQUENCE_ERROR = 0x00c,
    NVME_INVALID_PRP_OFFSET = 0x013,
    NVME_WRITE_PROTECTED = 0x020,
    NVME_LBA_OUT_OF_RANGE = 0x080,
    NVME_INVALID_CQ = 0x100,
    NVME_INVALID_QID = 0x101,
    NVME_INVALID_QUEUE_SIZE = 0x102,
    NVME_TOO_MANY_AERS = 0x105,
    NVME_INVALID_VECTOR = 0x108,
    NVME_INVALID_LOG_PAGE = 0x109,
    NVME_INVALID_QUEUE_DELETION = 0x10c,
    NVME_FEATURE_NOT_SAVEABLE = 0x10d,
    NVME_WRITE_FAULT = 0x280,
    NVME_UNRECOVERED_READ_ERROR = 0x281,

    NVME_NO_COMPLETION = 0xffff, /* of this program: not now */
};

#define NVME_STATUS_MORE (1u << 14) /* the Error Information log has more; as in the entry */
#define NVME_STATUS_DNR (1u << 15)  /* do not retry */

/* Create I/O queues (5.3, 5.4). */
#define NVME_QUEUE_PC (1u << 0)  /* physically contiguous */
#define NVME_QUEUE_IEN (1u << 1) /* interrupts enabled */

/* Read, write, write zeroes (6.9, 6.15, 6.16). */
#define NVME_RW_FUA (1u << 30)

/* Dataset management (6.7). */
#define NVME_DSM_AD (1u << 2) /* deallocate */

struct nvme_dsm_range {
    uint32_t attributes;
    uint32_t nlb;
    uint64_t slba;
};

/* Asynchronous events (5.2): types, and for each of them the log page that tells more. */
enum nvme_event_type {
    NVME_EVENT_ERROR = 0,
    NVME_EVENT_SMART = 1,
    NVME_NR_EVENT_TYPES = 2,
};

enum nvme_event_info {
    NVME_EVENT_INVALID_DOORBELL = 0,       /* error: no such doorbell */
    NVME_EVENT_INVALID_DOORBELL_VALUE = 1, /* error */
    NVME_EVENT_TEMPERATURE = 1,            /* SMART: beyond a threshold */
};

/* Identify (5.15). */
enum nvme_cns {
    NVME_CNS_NAMESPACE = 0,
    NVME_CNS_CONTROLLER = 1,
    NVME_CNS_ACTIVE_NAMESPACES = 2,
    NVME_CNS_NAMESPACE_DESCRIPTORS = 3,
};

#define NVME_NIDT_UUID 3
#define NVME_NSID_ALL 0xffffffffu

struct nvme_power_state {
    uint16_t mp; /* maximum power, in units of 10 mW */
    uint8_t reserved[30];
};

struct nvme_id_controller {
    uint16_t vid;
    uint16_t ssvid;
    char sn[20];
    char mn[40];
    char fr[8];
    uint8_t rab;
    uint8_t ieee[3];
    uint8_t cmic;
    uint8_t mdts;
    uint16_t cntlid;
    uint32_t ver;
    uint32_t rtd3r;
    uint32_t rtd3e;
    uint32_t oaes;
    uint32_t ctratt;
    uint16_t rrls;
    uint8_t reserved102[9];
    uint8_t cntrltype;
    uint8_t reserved112[144];
    uint16_t oacs;
    uint8_t acl;
    uint8_t aerl;
    uint8_t frmw;
    uint8_t lpa;
    uint8_t elpe;
    uint8_t npss;
    uint8_t avscc;
    uint8_t apsta;
    uint16_t wctemp;
    uint16_t cctemp;
    uint8_t reserved270[242];
    uint8_t sqes;
    uint8_t cqes;
    uint16_t maxcmd;
    uint32_t nn;
    uint16_t oncs;
    uint16_t fuses;
    uint8_t fna;
    uint8_t vwc;
    uint16_t awun;
    uint16_t awupf;
    uint8_t nvscc;
    uint8_t nwpc;
    uint8_t reserved532[4];
    uint32_t sgls;
    uint8_t reserved540[228];
    char subnqn[256];
    uint8_t reserved1024[1024];
    struct nvme_power_state psd[32];
    uint8_t vendor[1024];
};
static_assert(sizeof(struct nvme_id_controller) == 4096, "5.15.2.2");

#define NVME_CNTRLTYPE_IO 1
#define NVME_FRMW_ONE_READ_ONLY_SLOT 0x03
#define NVME_LPA_EXTENDED (1u << 2) /* Get Log Page takes 32 bits of length, and an offset */
#define NVME_ONCS_DSM (1u << 2)
#define NVME_ONCS_WRITE_ZEROES (1u << 3)
#define NVME_VWC_PRESENT (1u << 0)
#define NVME_VWC_FLUSH_ALL (3u << 1) /* Flush takes NVME_NSID_ALL */

struct nvme_lba_format {
    uint16_t ms;
    uint8_t lbads; /* block size: a power of two */
    uint8_t rp;
};

struct nvme_id_namespace {
    uint64_t nsze;
    uint64_t ncap;
    uint64_t nuse;
    uint8_t nsfeat;
    uint8_t nlbaf;
    uint8_t flbas;
    uint8_t mc;
    uint8_t dpc;
    uint8_t dps;
    uint8_t nmic;
    uint8_t rescap;
    uint8_t fpi;
    uint8_t dlfeat;
    uint8_t reserved34[65];
    uint8_t nsattr;
    uint8_t reserved100[28];
    struct nvme_lba_format lbaf[16];
    uint8_t reserved192[3904];
};
static_assert(sizeof(struct nvme_id_namespace) == 4096, "5.15.2.1");

#define NVME_DLFEAT_ZEROES (1u << 0)       /* deallocated blocks read as zeroes */
#define NVME_DLFEAT_WRITE_ZEROES (1u << 3) /* Write Zeroes deallocates */
#define NVME_NSATTR_WRITE_PROTECTED (1u << 0)

/* Log pages (5.14). */
enum nvme_log_page {
    NVME_LOG_ERROR = 1,
    NVME_LOG_SMART = 2,
    NVME_LOG_FIRMWARE = 3,
    NVME_LOG_CHANGED_NAMESPACES = 4,
};

struct nvme_error_entry {
    uint64_t error_count; /* of this one; 0: no entry */
    uint16_t sqid;
    uint16_t cid;
    uint16_t status; /* as in the completion, without the phase */
    uint16_t location;
    uint64_t lba;
    uint32_t nsid;
    uint8_t reserved28[36];
};
static_assert(sizeof(struct nvme_error_entry) == 64, "5.14.1.1");

struct nvme_smart_log {
    uint8_t critical_warning;
    uint8_t temperature[2]; /* in kelvins */
    uint8_t available_spare;
    uint8_t available_spare_threshold;
    uint8_t percentage_used;
    uint8_t reserved6[26];
    uint64_t data_units_read[2]; /* in units of 1000 times 512 bytes */
    uint64_t data_units_written[2];
    uint64_t host_read_commands[2];
    uint64_t host_write_commands[2];
    uint64_t busy_time[2];
    uint64_t power_cycles[2];
    uint64_t power_on_hours[2];
    uint64_t unsafe_shutdowns[2];
    uint64_t media_errors[2];
    uint64_t error_log_entries[2];
    uint8_t reserved192[320];
};
static_assert(sizeof(struct nvme_smart_log) == 512, "5.14.1.2");

#define NVME_SMART_TEMPERATURE (1u << 1)

struct nvme_firmware_log {
    uint8_t afi; /* slot of the firmware that runs */
    uint8_t reserved1[7];
    char frs[7][8];
    uint8_t reserved64[448];
};
static_assert(sizeof(struct nvme_firmware_log) == 512, "5.14.1.3");

/* Features (5.21.1). */
enum nvme_feature {
    NVME_FEAT_ARBITRATION = 0x01,
    NVME_FEAT_POWER_MANAGEMENT = 0x02,
    NVME_FEAT_TEMPERATURE_THRESHOLD = 0x04,
    NVME_FEAT_ERROR_RECOVERY = 0x05,
    NVME_FEAT_VOLATILE_WRITE_CACHE = 0x06,
    NVME_FEAT_NUMBER_OF_QUEUES = 0x07,
    NVME_FEAT_INTERRUPT_COALESCING = 0x08,
    NVME_FEAT_INTERRUPT_VECTOR = 0x09,
    NVME_FEAT_WRITE_ATOMICITY = 0x0a,
    NVME_FEAT_ASYNC_EVENTS = 0x0b,
    NVME_NR_FEATURES = 0x0c,
};

/*
 * The state of a controller: all that another process has to be given to go on in
 * its place, besides the guest's memory, the namespace (both open the same file) and
 * the PCI configuration space (the client has it). The controller keeps it in just
 * this form, so that saving is a copy, and a field that is forgotten cannot be.
 *
 * It travels as one record: fixed sizes, nothing padded, reserved fields 0. What a
 * later version adds goes before the checksum, under a new number; it then still
 * takes version 1. A controller refuses a version that it doesn't know.
 */
#define NVME_STATE_MAGIC 0x54415453454d564eu /* "NVMESTAT" */
#define NVME_STATE_VERSION 1u

struct nvme_state_sq {
    uint64_t base;
    uint16_t size; /* in entries; 0: no such queue, and all else is 0, too */
    uint16_t head;
    uint16_t tail;
    uint16_t cqid;
    uint32_t doorbell; /* as last looked at, the values that made no sense included */
    uint32_t reserved;
};

struct nvme_state_cq {
    uint64_t base;
    uint16_t size;
    uint16_t head;
    uint16_t tail;
    uint16_t vector;
    uint32_t doorbell;
    uint8_t phase; /* of the entry at tail */
    uint8_t interrupts; /* enabled */
    uint16_t reserved;
};

/* What the SMART log counts. */
struct nvme_state_counters {
    uint64_t read_commands;
    uint64_t write_commands;
    uint64_t blocks_read;
    uint64_t blocks_written;
    uint64_t media_errors;
    uint64_t errors; /* ever put in the Error Information log */
};

struct nvme_state {
    uint64_t magic;
    uint32_t version;
    uint32_t length; /* of all of it */

    /* What has to be the same on both sides. */
    uint8_t uuid[16]; /* of the namespace */
    uint64_t nsze;    /* its blocks */
    uint16_t nr_queues;
    uint16_t nr_vectors;
    uint32_t reserved0;

    /* Registers. */
    uint64_t asq;
    uint64_t acq;
    uint32_t aqa;
    uint32_t cc;
    uint32_t csts;
    uint32_t intms;

    uint32_t features[NVME_NR_FEATURES];
    uint64_t coalescing_disabled; /* a bit for each vector */
    uint16_t under_temperature;   /* the second threshold */

    uint8_t events_masked;                       /* types, a bit each */
    uint8_t events_pending[NVME_NR_EVENT_TYPES]; /* by type: enum nvme_event_info, a bit each */
    uint8_t nr_aers;
    uint16_t aers[NVME_NR_AERS]; /* Asynchronous Event Requests that wait, by cid */
    uint16_t reserved1;

    struct nvme_state_sq sqs[NVME_NR_QUEUES];
    struct nvme_state_cq cqs[NVME_NR_QUEUES];
    struct nvme_state_counters counters;
    struct nvme_error_entry errors[NVME_NR_ERRORS]; /* the latest one first */
    uint8_t msix_table[NVME_MSIX_TABLE_SIZE];

    /* Only in the record: what is in the doorbell page, looked at or not. */
    uint32_t doorbells[2 * NVME_NR_QUEUES];

    uint64_t checksum; /* 64-bit FNV-1a of all that is before */
};

static_assert(sizeof(struct nvme_state) == 152 + NVME_NR_QUEUES * (24 + 24 + 8) + 48 + NVME_NR_ERRORS * 64
                                               + NVME_MSIX_TABLE_SIZE + 8, "nothing is padded");

#endif /* NVME_H */
