/*
 * Ten thousand clients come and go, half of them in the middle of a message. What
 * there is of descriptors, mappings and memory afterwards is what there was after
 * the first few hundred.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <sys/mman.h>

#include "../c/client.h"
#include "shim.h"

enum { WARM_UP = 240, CLIENTS = 10000, GUEST = 0x100000, GUEST_SIZE = 0x10000, BAR_SIZE = 0x80000 };

#include "../c/bar.h"

/* Resident pages that may come on top: far fewer than a leak of 16 bytes each
 * time would take (40), enough for a stack or a cache to grow into its last page. */
enum { MORE_PAGES = 16 };

static vfu_ctx_t *ctx;
static int guest;

static void
dma_nothing(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

struct use {
    int descriptors;
    long blocks, bytes, mappings, resident;
};

static struct use
measure(void)
{
    struct use use = { .blocks = shim_blocks(), .bytes = shim_bytes(), .mappings = shim_mappings() };
    DIR *directory = opendir("/proc/self/fd");
    FILE *file = fopen("/proc/self/statm", "r");

    CHECK(directory != NULL && file != NULL);
    CHECK_EQ(fscanf(file, "%*d %ld", &use.resident), 1);
    while (readdir(directory) != NULL) {
        use.descriptors++;
    }
    fclose(file);
    closedir(directory);
    return use;
}

static void
run(void)
{
    CHECK(VFU(vfu_run_ctx(ctx)) >= 0);
}

static void
map_and_use(int client)
{
    struct vfio_user_dma_map request = {
        .argsz = sizeof(request), .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .addr = GUEST, .size = GUEST_SIZE };
    char sg[40];
    struct iovec iov;

    client_send_flags(client, 2, VFIO_USER_DMA_MAP, 0, &request, sizeof(request), guest);
    run();
    client_reply(client, 2, VFIO_USER_DMA_MAP, NULL, 0);
    CHECK_EQ(VFU(vfu_addr_to_sgl(ctx, (void *)GUEST, GUEST_SIZE, (dma_sg_t *)sg, 1, PROT_WRITE)), 1);
    CHECK_EQ(VFU(vfu_sgl_get(ctx, (dma_sg_t *)sg, &iov, 1, 0)), 0);
    ((volatile char *)iov.iov_base)[0]++;
    VFU_VOID(vfu_sgl_put(ctx, (dma_sg_t *)sg, &iov, 1));
}

/* One that says and waits for all that it should, and goes. */
static void
polite(int client)
{
    struct region_message reply;

    client_send_version(client);
    CHECK_EQ(VFU(vfu_attach_ctx(ctx)), 0);
    client_recv_version(client);
    map_and_use(client);
    client_send_region_read(client, 3, 0, 8, 8);
    run();
    client_reply(client, 3, VFIO_USER_REGION_READ, &reply, 16 + 8);
}

/* The first bytes of a message, and with them a descriptor. */
static void
begin(int client, uint16_t cmd, uint32_t size, size_t sent, int pass)
{
    static char message[BAR_SIZE];
    struct vfio_user_header header = { .msg_id = 9, .cmd = cmd, .msg_size = size };
    struct iovec iov = { message, sent };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { .bytes = { 0 } };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    memcpy(message, &header, sizeof(header));
    if (pass != -1) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &pass, sizeof(int));
    }
    CHECK_EQ(sendmsg(client, &msg, MSG_NOSIGNAL), (ssize_t)sent);
}

/* One that goes while it says who it is. */
static void
rude_in_version(int client, int how)
{
    static const size_t sent[] = { 0, 7, 16, 18 };

    if (sent[how] > 0) {
        begin(client, VFIO_USER_VERSION, 20, sent[how], how % 2 ? guest : -1);
    }
    CHECK_FAILS(VFU(vfu_attach_ctx(ctx)), EAGAIN);
    close(client);
    CHECK(VFU(vfu_attach_ctx(ctx)) == -1 && (errno == ENOMSG || errno == ECONNRESET));
}

/* One that goes later, but not between messages. */
static void
rude(int client, int how)
{
    client_send_version(client);
    CHECK_EQ(VFU(vfu_attach_ctx(ctx)), 0);
    client_recv_version(client);
    map_and_use(client);
    switch (how) {
    case 0: /* half a header */
        begin(client, VFIO_USER_REGION_READ, 32, 9, -1);
        break;
    case 1: /* half a small body, with a descriptor */
        begin(client, VFIO_USER_DMA_MAP, 48, 33, guest);
        break;
    case 2: /* half a large body, of which some has been taken */
        begin(client, VFIO_USER_REGION_WRITE, 400000, 100000, -1);
        break;
    default: /* half a body that was refused, and replies that nobody reads */
        client_send_region_read(client, 3, 0, 0, BAR_SIZE);
        client_send_region_read(client, 4, 0, 0, BAR_SIZE);
        begin(client, 999, 1000, 500, guest);
        break;
    }
    run();
    close(client);
    for (int i = 0; VFU(vfu_run_ctx(ctx)) >= 0; i++) {
        CHECK(i < 8);
    }
    CHECK_EQ(errno, ENOTCONN);
}

static void
one_client(int number)
{
    int client = client_connect();

    if (number % 2 == 0) {
        polite(client);
        close(client);
        CHECK_FAILS(VFU(vfu_run_ctx(ctx)), ENOTCONN);
    } else if (number / 2 % 2 == 0) {
        rude_in_version(client, number / 4 % 4);
    } else {
        rude(client, number / 4 % 4);
    }
}

static void
clients_come_and_go(void)
{
    struct use before, after;

    ctx = VFU(vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI));
    CHECK(ctx != NULL);
    CHECK_EQ(VFU(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                                  -1, 0)), 0);
    CHECK_EQ(VFU(vfu_setup_device_dma(ctx, 64, dma_nothing, dma_nothing)), 0);
    CHECK_EQ(VFU(vfu_realize_ctx(ctx)), 0);
    CHECK(VFU(vfu_get_poll_fd(ctx)) >= 0);
    for (int i = 0; i < WARM_UP; i++) {
        one_client(i);
    }
    measure();
    before = measure();
    for (int i = 0; i < CLIENTS; i++) {
        one_client(i);
    }
    after = measure();
    CHECK_EQ(after.descriptors, before.descriptors);
    CHECK_EQ(after.mappings, before.mappings);
    CHECK_EQ(after.blocks, before.blocks);
    CHECK_EQ(after.bytes, before.bytes);
    CHECK(after.resident - before.resident < MORE_PAGES);
    VFU_VOID(vfu_destroy_ctx(ctx));
}

int
main(void)
{
    make_socket_folder();
    guest = memfd_create("guest", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(guest, GUEST_SIZE), 0);
    RUN(clients_come_and_go);
    remove_socket_folder();
    return check_result();
}
