/*
 * Callbacks call back into the library: the bytes that a callback looks at stay
 * where they are while nested traffic goes through the same socket, and what
 * crosses a command of the server's is executed afterwards, in order.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "client.h"

enum { GUEST = 0x10000, GUEST_SIZE = 0x1000, BAR_SIZE = 0x1000 };

static int client;
static unsigned accesses[8], nr_accesses;

/* A write to offset 0 makes the device read guest memory by messages and do all
 * else that a callback may do. */
static ssize_t
bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    CHECK(nr_accesses < 8);
    accesses[nr_accesses++] = offset;
    CHECK_EQ((uintptr_t)buf % 8, 0);
    if (is_write && offset == 0) {
        char before[16], guest[64], sg[40];

        CHECK_EQ(count, sizeof(before));
        memcpy(before, buf, count);
        CHECK_EQ(vfu_addr_to_sgl(ctx, (void *)GUEST, sizeof(guest), (dma_sg_t *)sg, 1, PROT_READ), 1);
        CHECK_EQ(vfu_sgl_read(ctx, (dma_sg_t *)sg, 1, guest, 0), 0);
        for (size_t i = 0; i < sizeof(guest); i++) {
            CHECK_EQ(guest[i], (char)i);
        }
        CHECK_MEM_EQ(buf, before, count);
        CHECK_FAILS(vfu_irq_trigger(ctx, 0), ENOENT);
        CHECK(vfu_get_private(ctx) == NULL);
        CHECK(vfu_pci_get_config_space(ctx) != NULL);
        CHECK_EQ(vfu_create_ioeventfd(ctx, 0, -1, 0, 4, 0, 0, -1, 0), 0);
        CHECK(vfu_get_poll_fd(ctx) >= 0);
        CHECK_FAILS(vfu_run_ctx(ctx), EBUSY); /* one request at a time */
        CHECK_FAILS(vfu_attach_ctx(ctx), EINVAL);
        CHECK_FAILS(vfu_device_quiesced(ctx, 0), EINVAL);
    } else if (!is_write) {
        memset(buf, 0x5a, count);
    }
    return count;
}

static void
dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    char sg[40];

    CHECK_EQ(info->iova.iov_len, GUEST_SIZE);
    CHECK_EQ(vfu_addr_to_sgl(ctx, info->iova.iov_base, GUEST_SIZE, (dma_sg_t *)sg, 1, PROT_READ), 1);
}

static void
dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    dma_register(ctx, info); /* it can be used until this returns */
}

/* Between the server's question and its own answer the client sends two more
 * commands, one of them in two pieces. */
static void *
answer_crosswise(void *unused)
{
    struct {
        struct vfio_user_header header;
        struct vfio_user_dma_region_access access;
        char data[64];
    } answer;
    struct {
        struct vfio_user_header header;
        struct vfio_user_region_access access;
    } command = { { .msg_id = 22, .cmd = VFIO_USER_REGION_READ, .msg_size = sizeof(command) },
                  { .offset = 16, .region = 0, .count = 8 } };

    CHECK_EQ(client_recv(client, &answer.header, &answer.access, sizeof(answer.access)), 16);
    CHECK_EQ(answer.header.cmd, VFIO_USER_DMA_READ);
    CHECK_EQ(answer.access.addr, GUEST);
    CHECK_EQ(answer.access.count, sizeof(answer.data));
    client_send_region_read(client, 21, 0, 8, 8);
    CHECK_EQ(send(client, &command, 20, 0), 20);
    CHECK_EQ(send(client, (char *)&command + 20, sizeof(command) - 20, 0), (ssize_t)sizeof(command) - 20);
    for (size_t i = 0; i < sizeof(answer.data); i++) {
        answer.data[i] = i;
    }
    answer.header.flags = VFIO_USER_F_TYPE_REPLY;
    answer.header.msg_size = sizeof(answer);
    CHECK_EQ(send(client, &answer, sizeof(answer), 0), sizeof(answer));
    return unused;
}

static void
a_callback_may_call_anything(void)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                                    VFU_DEV_TYPE_PCI);
    struct vfio_user_dma_map map = { .argsz = sizeof(map), .flags = 3, .addr = GUEST, .size = GUEST_SIZE };
    struct region_message reply;
    pthread_t thread;

    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                              -1, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 8, dma_register, dma_unregister), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    client_send(client, 2, VFIO_USER_DMA_MAP, &map, sizeof(map));
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 2, VFIO_USER_DMA_MAP, NULL, 0);

    /* One more read is received together with the write that leads to the DMA. */
    client_send_region_write(client, 10, 0, 0, 0, "sixteen bytes...", 16);
    client_send_region_read(client, 11, 0, 4, 4);
    CHECK_EQ(pthread_create(&thread, NULL, answer_crosswise, NULL), 0);
    for (int executed = 0; executed < 4;) {
        int count = vfu_run_ctx(ctx);
        CHECK(count >= 0);
        executed += count;
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    client_reply(client, 10, VFIO_USER_REGION_WRITE, &reply, 16);
    client_reply(client, 11, VFIO_USER_REGION_READ, &reply, 16 + 4);
    client_reply(client, 21, VFIO_USER_REGION_READ, &reply, 16 + 8);
    client_reply(client, 22, VFIO_USER_REGION_READ, &reply, 16 + 8);
    CHECK_EQ(nr_accesses, 4);
    CHECK(accesses[0] == 0 && accesses[1] == 4 && accesses[2] == 8 && accesses[3] == 16);
    close(client);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
}

static vfu_ctx_t *doomed;

static ssize_t
destroy_in_callback(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)buf, (void)offset, (void)is_write;
    CHECK(ctx == doomed);
    vfu_destroy_ctx(ctx); /* refused: this very call has to return into it */
    return count;
}

static void
a_context_outlives_its_callbacks(void)
{
    struct region_message reply;

    doomed = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(doomed != NULL);
    CHECK_EQ(vfu_setup_region(doomed, 2, 256, destroy_in_callback, VFU_REGION_FLAG_RW, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_realize_ctx(doomed), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(doomed), 0);
    client_recv_version(client);
    client_send_region_read(client, 3, 2, 0, 4);
    CHECK_EQ(vfu_run_ctx(doomed), 1);
    client_reply(client, 3, VFIO_USER_REGION_READ, &reply, 16 + 4);
    close(client);
    vfu_destroy_ctx(doomed);
}

int
main(void)
{
    make_socket_folder();
    RUN(a_callback_may_call_anything);
    RUN(a_context_outlives_its_callbacks);
    remove_socket_folder();
    return check_result();
}
