/*
 * The example device nvme from within: its controller, and what its source
 * files know of each other.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef NVME_CONTROLLER_H
#define NVME_CONTROLLER_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <vfio-user/libvfio-user.h>

#include "nvme.h"

_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "structures are kept in the order of the guest");

enum {
    CONFIG_SPACE_SIZE = 4096,
    /* Vendor 0x1234 is nobody's; emulated devices have used it for long. */
    VENDOR_ID = 0x1234,
    DEVICE_ID = 0xd3a1,

    /* Commands that are fetched at a time. */
    BATCH = 32,
    /* Rounds over the queues before the main loop looks after the client. */
    ROUNDS = 1024,
    ROUND_WITH_WORK = 16, /* what one that found something counts for */

    PAGE = NVME_PAGE_SIZE,
    PRPS_IN_PAGE = PAGE / 8,
    MAX_TRANSFER = PAGE << NVME_MDTS,

    /* Milliseconds that a client may have to wait for a new process, and that for an old one. */
    HAND_OVER_TIMEOUT = 5000,

    /* In kelvins. Nothing gets warm here. */
    TEMPERATURE = 310,
    WARNING_TEMPERATURE = 343,
    CRITICAL_TEMPERATURE = 353,
};

#define FIRMWARE "1.0     "

/* The blocks: either memory or a file. */
struct namespace {
    uint64_t nr_blocks;
    int fd;
    uint8_t *memory; /* NULL: it is a file */
    bool readonly;
    uint8_t uuid[16];
};

/* Ranges of the guest's memory, in as many pieces as there are regions in them. */
struct pieces {
    dma_sg_t *sgl; /* entries of dma_sg_size() bytes */
    struct iovec *iov;
    struct iovec *spare; /* as many iovecs, for whoever uses them up */
    size_t nr;
    size_t room;
};

struct controller {
    vfu_ctx_t *ctx;
    struct namespace ns;
    struct nvme_state state;
    uint16_t nr_active; /* no submission queue from this number on exists */

    /* The doorbells. Polled, they lie in a file that the client maps. */
    uint32_t *doorbells;
    bool poll_doorbells;
    int bar0_fd;
    uint32_t *client_doorbells; /* where they lie until the device has been taken over */

    /* The data of the command in hand, between map_data and unmap_data. */
    struct pieces data;
    /* What is accessed at the moment, besides. */
    struct pieces access;

    vfu_migr_state_t migration; /* as the library has it */
    struct nvme_state record;   /* the state on its way out or in */
    size_t moved;               /* bytes of it */
    bool damaged;               /* what came in can't be used */
    bool loaded;                /* and is not running yet */

    uint8_t power_on_config[CONFIG_SPACE_SIZE];
};

static inline size_t
min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* memory.c */
void free_pieces(struct pieces *pieces);
bool get_access(struct controller *ctrl, uint64_t address, size_t len, int prot);
void put_access(struct controller *ctrl);
bool access_guest(struct controller *ctrl, uint64_t address, void *buf, size_t len, int prot);
bool is_guest_memory(struct controller *ctrl, uint64_t address, size_t len, int prot);
enum nvme_status map_data(struct controller *ctrl, const struct nvme_command *cmd, size_t len,
                          int prot);
void unmap_data(struct controller *ctrl);
void copy_to_data(struct controller *ctrl, const uint8_t *from);
void copy_from_data(struct controller *ctrl, uint8_t *to);

/* queues.c */
void fail(struct controller *ctrl, const char *reason);
void raise_event(struct controller *ctrl, enum nvme_event_type type, enum nvme_event_info info);
void look_at_sq_doorbell(struct controller *ctrl, unsigned qid);
void look_at_cq_doorbell(struct controller *ctrl, unsigned qid);
size_t room_in_cq(struct controller *ctrl, unsigned qid, size_t wanted);
void complete(struct controller *ctrl, unsigned sqid, uint16_t cid, uint16_t status,
              uint32_t result);
void interrupt(struct controller *ctrl, unsigned cqid);
uint16_t log_error(struct controller *ctrl, unsigned sqid, const struct nvme_command *cmd,
                   enum nvme_status status);

/* namespace.c */
int create_memory_file(const char *name, uint64_t size);
void *map_file(int fd, uint64_t offset, uint64_t size);
void know_namespace(struct namespace *ns, uint64_t size, bool has_uuid);
void open_namespace(struct namespace *ns, const char *path, uint64_t size, bool has_uuid);
enum nvme_status access_namespace(struct controller *ctrl, uint64_t offset, bool is_write,
                                  bool durable);
enum nvme_status zero_blocks(struct controller *ctrl, uint64_t slba, uint64_t nlb);
enum nvme_status flush(struct controller *ctrl);

/* identity.c */
void make_uuid(bool is_device, uint64_t device, uint64_t inode, uint8_t uuid[16]);
void format_uuid(const uint8_t uuid[16], char text[37]);
void format_serial_number(const uint8_t uuid[16], char text[21]);

/* io.c */
enum nvme_status execute_io(struct controller *ctrl, const struct nvme_command *cmd);

/* identify.c */
enum nvme_status identify(struct controller *ctrl, const struct nvme_command *cmd);
uint8_t critical_warning(const struct controller *ctrl);
enum nvme_status get_log_page(struct controller *ctrl, const struct nvme_command *cmd);

/* admin.c */
void set_up_cq(struct controller *ctrl, unsigned qid, uint64_t base, uint16_t size,
               bool interrupts, uint16_t vector);
void count_active(struct controller *ctrl);
void set_up_sq(struct controller *ctrl, unsigned qid, uint64_t base, uint16_t size, uint16_t cqid);
enum nvme_status execute_admin(struct controller *ctrl, const struct nvme_command *cmd,
                               uint32_t *result);

/* features.c */
void default_features(struct nvme_state *state);
bool is_feature_value(unsigned fid, uint32_t value);
enum nvme_status set_features(struct controller *ctrl, const struct nvme_command *cmd,
                              uint32_t *result);
enum nvme_status get_features(struct controller *ctrl, const struct nvme_command *cmd,
                              uint32_t *result);
enum nvme_status request_async_event(struct controller *ctrl, const struct nvme_command *cmd);
enum nvme_status abort_command(struct controller *ctrl, const struct nvme_command *cmd,
                               uint32_t *result);
bool deliver_events(struct controller *ctrl);

/* work.c */
bool is_stopped(const struct controller *ctrl);
bool work(struct controller *ctrl);

/* registers.c */
void say_that_memory_is_not_shared(struct controller *ctrl);
void reset_controller(struct controller *ctrl);
ssize_t bar0_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write);
ssize_t msix_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write);

/* reset.c */
void power_on(struct controller *ctrl);
int on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type);
void on_dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info);

/* migration.c */
int on_transition(vfu_ctx_t *ctx, vfu_migr_state_t state);
ssize_t on_read_data(vfu_ctx_t *ctx, void *buf, uint64_t count);
ssize_t on_write_data(vfu_ctx_t *ctx, void *buf, uint64_t count);

/* upgrade.c */
void set_up_hand_over(struct controller *ctrl, const char *socket);
void take_namespace(struct controller *ctrl, uint64_t size, bool has_uuid);
void take_doorbells(struct controller *ctrl);
bool hand_over(struct controller *ctrl);
vfu_ctx_t *ask_for_device(struct controller *ctrl, const char *socket);
bool take_over(struct controller *ctrl);

#endif /* NVME_CONTROLLER_H */
