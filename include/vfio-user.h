/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vfio-user protocol as it appears on the wire.
 *
 * Device code built on libvfio-user.h does not need this file: the library
 * receives, checks and answers the messages. It is for programs that speak the
 * protocol themselves, above all for clients in tests.
 *
 * Names and layouts follow the vfio-user protocol specification (QEMU,
 * docs/interop/vfio-user.rst), called "the specification" below, whose payloads
 * in turn follow <linux/vfio.h>. All integers are in the byte order of the
 * host; client and server run on the same machine. Sizes are in bytes.
 */
#ifndef VFIO_USER_H
#define VFIO_USER_H

#include <inttypes.h>
#include <linux/vfio.h>
#include <linux/version.h>

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

/*
 * Largest payload of a data transfer (region access, DMA message, migration
 * data) towards a peer that did not propose max_data_xfer_size.
 */
#define VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE (1024 * 1024)

/*
 * Commands: the cmd field of a message ("Commands" in the specification).
 * Unless noted, the client sends the command and the server replies.
 */
enum vfio_user_command {
	VFIO_USER_VERSION                  = 1,  /* struct vfio_user_version, both ways */
	VFIO_USER_DMA_MAP                  = 2,  /* struct vfio_user_dma_map; empty reply */
	VFIO_USER_DMA_UNMAP                = 3,  /* struct vfio_user_dma_unmap, both ways */
	VFIO_USER_DEVICE_GET_INFO          = 4,  /* struct vfio_user_device_info, both ways */
	VFIO_USER_DEVICE_GET_REGION_INFO   = 5,  /* struct vfio_region_info, both ways */
	VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6,  /* ..._io_fds_request; ..._io_fds_reply */
	VFIO_USER_DEVICE_GET_IRQ_INFO      = 7,  /* struct vfio_irq_info, both ways */
	VFIO_USER_DEVICE_SET_IRQS          = 8,  /* struct vfio_irq_set; empty reply */
	VFIO_USER_REGION_READ              = 9,  /* struct vfio_user_region_access; + data in the reply */
	VFIO_USER_REGION_WRITE             = 10, /* struct vfio_user_region_access + data; without in the reply */
	VFIO_USER_DMA_READ                 = 11, /* sent by the server: struct vfio_user_dma_region_access */
	VFIO_USER_DMA_WRITE                = 12, /* sent by the server: struct vfio_user_dma_region_access */
	VFIO_USER_DEVICE_RESET             = 13, /* empty, both ways */
	VFIO_USER_REGION_WRITE_MULTI       = 15, /* only if "write_multiple" was negotiated */
	VFIO_USER_DEVICE_FEATURE           = 16, /* struct vfio_user_device_feature, both ways */
	VFIO_USER_MIG_DATA_READ            = 17, /* struct vfio_user_mig_data; + data in the reply */
	VFIO_USER_MIG_DATA_WRITE           = 18, /* struct vfio_user_mig_data + data; empty reply */
	VFIO_USER_MAX                      = 19  /* one above the last command */
};

/* Type of a message: bits 3:0 of its flags. */
enum vfio_user_message_type {
	VFIO_USER_MESSAGE_COMMAND = 0,
	VFIO_USER_MESSAGE_REPLY   = 1
};

/*
 * Every message starts with this header; the payload follows it. File
 * descriptors travel as SCM_RIGHTS with its first byte.
 */
struct vfio_user_header {
	uint16_t msg_id;   /* chosen by the sender of the command, echoed in the reply */
	uint16_t cmd;      /* enum vfio_user_command, echoed in the reply */
	uint32_t msg_size; /* of the whole message, this header included */
	uint32_t flags;    /* VFIO_USER_F_* */
#define VFIO_USER_F_TYPE_MASK    0xf      /* enum vfio_user_message_type */
#define VFIO_USER_F_TYPE_COMMAND 0x0
#define VFIO_USER_F_TYPE_REPLY   0x1
#define VFIO_USER_F_NO_REPLY     0x10     /* command: the sender wants no reply */
#define VFIO_USER_F_ERROR        0x20     /* reply: the command failed, see error_no */
	uint32_t error_no; /* errno of a failed command, 0 otherwise */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_header, 16);

/* "No reply" as a number of its own, from before it became a bit of flags. */
#define VFIO_USER_FLAGS_NO_REPLY 0x1

/* VFIO_USER_VERSION: first message of a connection. */
__extension__ struct vfio_user_version {
	uint16_t major;  /* 0 */
	uint16_t minor;
	uint8_t  data[]; /* optional: capabilities as JSON text, NUL-terminated */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_version, 4);

/* VFIO_USER_DEVICE_GET_INFO: struct vfio_device_info as of its first version. */
struct vfio_user_device_info {
	uint32_t argsz;
	uint32_t flags;       /* VFIO_DEVICE_FLAGS_* */
	uint32_t num_regions;
	uint32_t num_irqs;    /* interrupt types, not vectors */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_info, 16);

/* Dirty pages: one bit for each page, bit 0 of byte 0 first. */
__extension__ struct vfio_user_bitmap {
	uint64_t pgsize; /* bytes that a bit stands for */
	uint64_t size;   /* bytes in data */
	char     data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_bitmap, 16);

/*
 * VFIO_USER_DMA_MAP: guest memory becomes visible to the device. With a file
 * descriptor, that file holds the memory; without one, the device reaches it
 * by VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE.
 */
struct vfio_user_dma_map {
	uint32_t argsz;
	uint32_t flags;  /* VFIO_USER_F_DMA_REGION_* */
#define VFIO_USER_F_DMA_REGION_READ    (1 << 0) /* the device may read */
#define VFIO_USER_F_DMA_REGION_WRITE   (1 << 1) /* the device may write */
#define VFIO_USER_F_DMA_REGION_MMAP    (1 << 2) /* the file is to be mapped */
#define VFIO_USER_F_DMA_REGION_FILE_IO (1 << 3) /* the file is to be read and written */
	uint64_t offset; /* of the region in the file */
	uint64_t addr;   /* first IO virtual address of the region */
	uint64_t size;   /* of the region */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_dma_map, 32);

/* Flags of VFIO_USER_DMA_UNMAP, for kernel headers that lack them. */
#ifndef VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
#define VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP (1 << 0) /* report dirty pages, needs bitmap[0] */
#endif
#ifndef VFIO_DMA_UNMAP_FLAG_ALL
#define VFIO_DMA_UNMAP_FLAG_ALL              (1 << 1) /* all regions; addr and size are 0 */
#endif

/* VFIO_USER_DMA_UNMAP: exactly one mapped region goes, or all. */
__extension__ struct vfio_user_dma_unmap {
	uint32_t argsz;
	uint32_t flags; /* VFIO_DMA_UNMAP_FLAG_* */
	uint64_t addr;
	uint64_t size;
	struct vfio_user_bitmap bitmap[]; /* with GET_DIRTY_BITMAP: one */
};
VFU_ASSERT_SIZE(struct vfio_user_dma_unmap, 24);

/* VFIO_USER_REGION_READ and VFIO_USER_REGION_WRITE. */
__extension__ struct vfio_user_region_access {
	uint64_t offset; /* in the region */
	uint32_t region; /* its index */
	uint32_t count;  /* bytes to move, or moved */
	uint8_t  data[]; /* in the command of a write and in the reply of a read */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_region_access, 16);

/* VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE. */
__extension__ struct vfio_user_dma_region_access {
	uint64_t addr;   /* IO virtual address */
	uint64_t count;  /* bytes to move, or moved */
	uint8_t  data[]; /* in the command of a write and in the reply of a read */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_dma_region_access, 16);

/* An interrupt vector of the device. No command carries it today. */
struct vfio_user_irq_info {
	uint32_t subindex;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_irq_info, 4);

/*
 * VFIO_USER_DEVICE_GET_REGION_IO_FDS: descriptors by which accesses to parts of
 * a region reach the server without a message.
 */
typedef struct vfio_user_region_io_fds_request {
	uint32_t argsz; /* room the client has for the reply's payload */
	uint32_t flags; /* 0 */
	uint32_t index; /* of the region */
	uint32_t count; /* 0 */
} __attribute__((packed)) vfio_user_region_io_fds_request_t;
VFU_ASSERT_SIZE(struct vfio_user_region_io_fds_request, 16);

/* The type field of a sub-region. */
#define VFIO_USER_IO_FD_TYPE_IOEVENTFD        0
#define VFIO_USER_IO_FD_TYPE_IOREGIONFD       1
#define VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW 2

/*
 * A write in the sub-region signals an eventfd (KVM_IOEVENTFD). 48 bytes, with
 * the two shadow fields, where the specification has 40 without them.
 */
typedef struct vfio_user_sub_region_ioeventfd {
	uint64_t gpa_offset;          /* of the sub-region in its region */
	uint64_t size;                /* of the access that signals, 0 for any */
	uint32_t fd_index;            /* among the reply's descriptors; 0xffffffff: none */
	uint32_t type;                /* VFIO_USER_IO_FD_TYPE_IOEVENTFD or .._SHADOW */
	uint32_t flags;               /* as in struct kvm_ioeventfd */
	uint32_t shadow_mem_fd_index; /* .._SHADOW: descriptor of the shadow memory, else 0 */
	uint64_t shadow_offset;       /* .._SHADOW: offset into the shadow memory */
	uint64_t datamatch;           /* value whose write signals, if flags ask for that */
} __attribute__((packed)) vfio_user_sub_region_ioeventfd_t;
VFU_ASSERT_SIZE(struct vfio_user_sub_region_ioeventfd, 48);

/* Accesses to the sub-region become messages on a descriptor (KVM_SET_IOREGION). */
typedef struct vfio_user_sub_region_ioregionfd {
	uint64_t offset;    /* of the sub-region in its region */
	uint64_t size;      /* of the sub-region */
	uint32_t fd_index;  /* among the reply's descriptors */
	uint32_t type;      /* VFIO_USER_IO_FD_TYPE_IOREGIONFD */
	uint32_t flags;     /* as in struct kvm_ioregion */
	uint32_t padding;
	uint64_t user_data; /* returned in each message on the descriptor */
} __attribute__((packed)) vfio_user_sub_region_ioregionfd_t;
VFU_ASSERT_SIZE(struct vfio_user_sub_region_ioregionfd, 40);

__extension__ typedef struct vfio_user_region_io_fds_reply {
	uint32_t argsz; /* room that all sub-regions need */
	uint32_t flags; /* 0 */
	uint32_t index; /* of the region */
	uint32_t count; /* sub-regions that the region has */
	union sub_region {
		struct vfio_user_sub_region_ioeventfd  ioeventfd;
		struct vfio_user_sub_region_ioregionfd ioregionfd;
	} __attribute__((packed)) sub_regions[]; /* count of them if the client had room, else none */
} __attribute__((packed)) vfio_user_region_io_fds_reply_t;
VFU_ASSERT_SIZE(struct vfio_user_region_io_fds_reply, 16);

/*
 * VFIO_USER_DEVICE_FEATURE: get, set or probe a feature of the device. flags
 * holds the feature's number and what to do with it, VFIO_DEVICE_FEATURE_*.
 * The definitions are those of <linux/vfio.h>, for kernel headers that lack
 * them.
 */
#ifndef VFIO_DEVICE_FEATURE_MASK
#define VFIO_DEVICE_FEATURE_MASK  0xffff    /* the feature's number */
#define VFIO_DEVICE_FEATURE_GET   (1 << 16) /* get the feature's data */
#define VFIO_DEVICE_FEATURE_SET   (1 << 17) /* set the feature's data */
#define VFIO_DEVICE_FEATURE_PROBE (1 << 18) /* is the feature, with GET or SET, there? */
#endif

__extension__ struct vfio_user_device_feature {
	uint32_t argsz;
	uint32_t flags;
	uint8_t  data[]; /* of the feature, see below */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature, 8);

/* Feature 1, get: what kinds of migration the device knows. */
#ifndef VFIO_REGION_TYPE_MIGRATION_DEPRECATED
#define VFIO_DEVICE_FEATURE_MIGRATION 1
#define VFIO_MIGRATION_STOP_COPY      (1 << 0) /* state of the stopped device */
#define VFIO_MIGRATION_P2P            (1 << 1) /* the P2P states exist */
#endif
#ifndef VFIO_MIGRATION_PRE_COPY
#define VFIO_MIGRATION_PRE_COPY       (1 << 2) /* state of the running device */
#endif

struct vfio_user_device_feature_migration {
	uint64_t flags; /* VFIO_MIGRATION_* */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_migration, 8);

/* Feature 2, get and set: the migration state of the device. */
#ifndef VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
#define VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE 2
#endif

/*
 * States of the device (enum vfio_device_mig_state of <linux/vfio.h>, which
 * also shows the transitions between them). These are the numbers on the wire;
 * a device sees vfu_migr_state_t.
 */
enum vfio_user_device_mig_state {
	VFIO_USER_DEVICE_STATE_ERROR        = 0,
	VFIO_USER_DEVICE_STATE_STOP         = 1,
	VFIO_USER_DEVICE_STATE_RUNNING      = 2,
	VFIO_USER_DEVICE_STATE_STOP_COPY    = 3,
	VFIO_USER_DEVICE_STATE_RESUMING     = 4,
	VFIO_USER_DEVICE_STATE_RUNNING_P2P  = 5,
	VFIO_USER_DEVICE_STATE_PRE_COPY     = 6,
	VFIO_USER_DEVICE_STATE_PRE_COPY_P2P = 7,
	VFIO_USER_DEVICE_NUM_STATES         = 8
};

struct vfio_user_device_feature_mig_state {
	uint32_t device_state; /* enum vfio_user_device_mig_state */
	uint32_t data_fd;      /* not used: data goes by VFIO_USER_MIG_DATA_READ and _WRITE */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_mig_state, 8);

/* Features 6, 7 and 8: log the pages that the device dirties by DMA. */
#ifndef VFIO_DEVICE_FEATURE_DMA_LOGGING_START
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_START  6 /* set: ..._dma_logging_control */
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP   7 /* set: no data */
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT 8 /* get: ..._dma_logging_report */
#endif

struct vfio_user_device_feature_dma_logging_range {
	uint64_t iova;
	uint64_t length;
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_dma_logging_range, 16);

__extension__ struct vfio_user_device_feature_dma_logging_control {
	uint64_t page_size;  /* wish of the client; the reply says what is used */
	uint32_t num_ranges; /* 0: log everything */
	uint32_t reserved;
	struct vfio_user_device_feature_dma_logging_range ranges[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_dma_logging_control, 16);

__extension__ struct vfio_user_device_feature_dma_logging_report {
	uint64_t iova;      /* range to report on */
	uint64_t length;
	uint64_t page_size; /* bytes that a bit of the bitmap stands for */
	uint8_t  bitmap[];  /* in the reply; a multiple of 8 bytes */
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_device_feature_dma_logging_report, 24);

/* VFIO_USER_MIG_DATA_READ and VFIO_USER_MIG_DATA_WRITE. */
__extension__ struct vfio_user_mig_data {
	uint32_t argsz;
	uint32_t size;   /* bytes of data asked for, or carried */
	uint8_t  data[];
} __attribute__((packed));
VFU_ASSERT_SIZE(struct vfio_user_mig_data, 8);

#ifdef __cplusplus
}
#endif

#undef VFU_ASSERT_SIZE

#endif /* VFIO_USER_H */
