/*
 * A kernel without asynchronous I/O, which takes an eventfd that blocks to be
 * signalled: such an eventfd is refused, others are not, and the log says why.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <sys/eventfd.h>

#include "../c/client.h"
#include "shim.h"

static vfu_ctx_t *ctx;
static int client, lines;
static char line[512];

static void
on_log(vfu_ctx_t *context, int level, const char *text)
{
    (void)context, (void)level;
    lines++;
    snprintf(line, sizeof(line), "%s", text);
}

static void
begin(void)
{
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_log(ctx, on_log, LOG_ERR), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 1), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
}

static void
end(void)
{
    close(client);
    vfu_destroy_ctx(ctx);
}

/* Hands an eventfd over; returns the errno that the client is told. */
static int
assign(int flags)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFU_DEV_MSIX_IRQ, .count = 1 };
    struct vfio_user_header header;
    int event = eventfd(0, EFD_CLOEXEC | flags);
    char none[1];

    CHECK(event >= 0);
    lines = 0;
    client_send_flags(client, 2, VFIO_USER_DEVICE_SET_IRQS, 0, &set, sizeof(set), event);
    CHECK_EQ(VFU(vfu_run_ctx(ctx)), 1);
    CHECK_EQ(client_recv(client, &header, none, 0), 0);
    close(event);
    return header.error_no;
}

static void
refused_with_a_line(const char *words, int error)
{
    CHECK(shim_fired());
    CHECK_EQ(lines, 1);
    CHECK(strstr(line, "DEVICE_SET_IRQS of type 2, 1 vectors from 0") != NULL);
    CHECK(strstr(line, words) != NULL);
    CHECK(strstr(line, strerror(error)) != NULL);
    CHECK_FAILS(vfu_irq_trigger(ctx, 0), ENOENT);
}

static void
an_eventfd_that_blocks_takes_asynchronous_io(void)
{
    static const int errors[] = { ENOSYS, EPERM, EAGAIN };

    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        begin();
        shim_arm(SHIM_AIO, 1, errors[i]);
        CHECK_EQ(assign(0), errors[i]);
        refused_with_a_line("an eventfd without O_NONBLOCK takes the kernel's asynchronous I/O", errors[i]);
        /* It is asked for anew, and by now it is there. */
        shim_arm(SHIM_AIO, 0, 0);
        CHECK_EQ(assign(0), 0);
        CHECK_EQ(lines, 0);
        CHECK(shim_count(SHIM_AIO) > 0);
        CHECK_EQ(vfu_irq_trigger(ctx, 0), 0);
        end();
    }
}

static void
one_that_does_not_block_takes_none(void)
{
    begin();
    shim_arm(SHIM_AIO, 1, ENOSYS);
    CHECK_EQ(assign(EFD_NONBLOCK), 0);
    CHECK_EQ(lines, 0);
    CHECK_EQ(vfu_irq_trigger(ctx, 0), 0);
    CHECK_EQ(shim_count(SHIM_AIO), 0);
    shim_arm(SHIM_AIO, 0, 0);
    end();
}

static void
without_proc_it_tells_what_is_an_eventfd(void)
{
    begin();
    shim_arm(SHIM_READLINK, 1, ENOENT);
    CHECK_EQ(assign(EFD_NONBLOCK), 0);
    CHECK(shim_fired());
    CHECK_EQ(lines, 0);
    end();
}

int
main(void)
{
    make_socket_folder();
    RUN(an_eventfd_that_blocks_takes_asynchronous_io);
    RUN(one_that_does_not_block_takes_none);
    RUN(without_proc_it_tells_what_is_an_eventfd);
    remove_socket_folder();
    return check_result();
}
