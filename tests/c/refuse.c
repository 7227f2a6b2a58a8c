/*
 * A device that has to have pointers into the client's memory: it learns in its
 * register callback how a region is reached, and refuses what is not mapped.
 * Other threads look at memory meanwhile.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include <vfio-user/libvfio-user-ext.h>

#include "client.h"

enum { PAGE = 0x1000, IOVA = 0x10000, ROUNDS = 400 };

static vfu_ctx_t *ctx;
static int client, memory, registered, unregistered;

static void
on_register(vfu_ctx_t *context, vfu_dma_info_t *info)
{
    int access = vfux_get_dma_access(context, info->iova.iov_base);

    registered++;
    CHECK_EQ(access == VFUX_DMA_ACCESS_MMAP, info->vaddr != NULL);
    if (access != VFUX_DMA_ACCESS_MMAP) {
        CHECK(access == VFUX_DMA_ACCESS_MESSAGE || access == VFUX_DMA_ACCESS_FILE_IO);
        CHECK_EQ(vfux_refuse_dma_region(context, ENOTSUP), 0);
    }
}

static void
on_unregister(vfu_ctx_t *context, vfu_dma_info_t *info)
{
    unregistered++;
    CHECK_EQ(vfux_get_dma_access(context, info->iova.iov_base), VFUX_DMA_ACCESS_MMAP);
    CHECK_EQ(vfux_refuse_dma_region(context, ENOTSUP), -1);
    CHECK_EQ(errno, EINVAL);
}

static void
begin(void)
{
    registered = unregistered = 0;
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_device_dma(ctx, 2, on_register, on_unregister), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    memory = memfd_create("memory", MFD_CLOEXEC);
    CHECK(memory >= 0);
    CHECK_EQ(ftruncate(memory, PAGE), 0);
}

static void
end(void)
{
    close(memory);
    close(client);
    vfu_destroy_ctx(ctx);
}

/* Maps a page; returns the errno that the client is told. */
static int
map(uint64_t iova, uint32_t flags, int fd)
{
    struct vfio_user_dma_map request = {
        .argsz = sizeof(request), .flags = VFIO_USER_F_DMA_REGION_READ | flags, .addr = iova, .size = PAGE };
    struct vfio_user_header header;
    char none[1];

    client_send_flags(client, 2, VFIO_USER_DMA_MAP, VFIO_USER_F_TYPE_COMMAND, &request, sizeof(request), fd);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    CHECK_EQ(client_recv(client, &header, none, 0), 0);
    return header.error_no;
}

static void
unmap(uint64_t iova)
{
    struct vfio_user_dma_unmap request = { .argsz = sizeof(request), .addr = iova, .size = PAGE };

    client_send(client, 3, VFIO_USER_DMA_UNMAP, &request, sizeof(request));
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 3, VFIO_USER_DMA_UNMAP, &request, sizeof(request));
}

static void
only_what_is_mapped_is_taken(void)
{
    begin();
    CHECK_EQ(map(IOVA, 0, -1), ENOTSUP);
    CHECK_EQ(map(IOVA, VFIO_USER_F_DMA_REGION_FILE_IO, memory), ENOTSUP);
    CHECK_EQ(map(IOVA, 0, memory), 0);
    CHECK_EQ(vfux_get_dma_access(ctx, (vfu_dma_addr_t)(IOVA + PAGE - 1)), VFUX_DMA_ACCESS_MMAP);
    CHECK_EQ(vfux_get_dma_access(ctx, (vfu_dma_addr_t)(IOVA + PAGE)), -1);
    CHECK_EQ(errno, ENOENT);
    unmap(IOVA);
    CHECK_EQ(registered, 3);
    CHECK_EQ(unregistered, 1);
    CHECK_EQ(vfux_refuse_dma_region(ctx, ENOTSUP), -1);
    CHECK_EQ(errno, EINVAL);
    end();
}

/* Two regions are possible, so refused ones that stayed would be noticed. */
static void
refused_regions_leave_nothing_behind(void)
{
    begin();
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_EQ(map(IOVA + i * PAGE, 0, -1), ENOTSUP);
    }
    CHECK_EQ(map(IOVA, 0, memory), 0);
    CHECK_EQ(map(IOVA + PAGE, 0, memory), 0);
    CHECK_EQ(registered, ROUNDS + 2);
    end();
    CHECK_EQ(unregistered, 2);
}

static atomic_bool stop;
static atomic_ulong looks;

/* The page at IOVA stays; the one behind it comes and is refused all the time. */
static void *
look(void *argument)
{
    void *sgl = malloc(dma_sg_size());

    (void)argument;
    CHECK(sgl != NULL);
    while (!atomic_load(&stop)) {
        struct iovec iov;
        int access = vfux_get_dma_access(ctx, (vfu_dma_addr_t)(IOVA + PAGE));

        CHECK_EQ(vfux_get_dma_access(ctx, (vfu_dma_addr_t)IOVA), VFUX_DMA_ACCESS_MMAP);
        CHECK(access == VFUX_DMA_ACCESS_MESSAGE || (access == -1 && errno == ENOENT));
        if (vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(IOVA + PAGE), 1, sgl, 1, PROT_READ) == 1) {
            CHECK_EQ(vfu_sgl_get(ctx, sgl, &iov, 1, 0), -1);
        }
        atomic_fetch_add(&looks, 1);
    }
    free(sgl);
    return NULL;
}

static void
threads_look_while_regions_are_refused(void)
{
    pthread_t thread;

    begin();
    CHECK_EQ(map(IOVA, 0, memory), 0);
    atomic_store(&stop, false);
    CHECK_EQ(pthread_create(&thread, NULL, look, NULL), 0);
    for (int i = 0; i < ROUNDS || atomic_load(&looks) == 0; i++) {
        CHECK_EQ(map(IOVA + PAGE, 0, -1), ENOTSUP);
    }
    atomic_store(&stop, true);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    end();
}

int
main(void)
{
    make_socket_folder();
    RUN(only_what_is_mapped_is_taken);
    RUN(refused_regions_leave_nothing_behind);
    RUN(threads_look_while_regions_are_refused);
    remove_socket_folder();
    return check_result();
}
