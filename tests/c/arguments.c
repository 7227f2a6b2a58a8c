/*
 * What C code can get wrong: NULL in every place, numbers out of range, calls in
 * the wrong order. Each is refused with errno; none crashes.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <limits.h>
#include <sys/mman.h>

#include "client.h"

static vfu_ctx_t *ctx;

static ssize_t
access_nothing(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)c, (void)buf, (void)offset, (void)is_write;
    return count;
}

static void
dma_nothing(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

static int
transition_nothing(vfu_ctx_t *c, vfu_migr_state_t state)
{
    (void)c, (void)state;
    return 0;
}

static ssize_t
data_nothing(vfu_ctx_t *c, void *buf, uint64_t count)
{
    (void)c, (void)buf;
    return count;
}

static vfu_ctx_t *
create(void)
{
    vfu_ctx_t *created = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                                        VFU_DEV_TYPE_PCI);

    CHECK(created != NULL);
    return created;
}

static void
no_context(void)
{
    char sg[64] = { 0 };
    struct iovec iov;
    char data[8];

    vfu_destroy_ctx(NULL);
    vfu_log(NULL, LOG_ERR, "nobody hears %s", "this");
    CHECK(vfu_get_private(NULL) == NULL);
    CHECK(vfu_pci_get_config_space(NULL) == NULL);
    CHECK_FAILS(vfu_realize_ctx(NULL), EINVAL);
    CHECK_FAILS(vfu_attach_ctx(NULL), EINVAL);
    CHECK_FAILS(vfu_run_ctx(NULL), EINVAL);
    CHECK_FAILS(vfu_get_poll_fd(NULL), EINVAL);
    CHECK_FAILS(vfu_setup_log(NULL, NULL, LOG_ERR), EINVAL);
    CHECK_FAILS(vfu_setup_region(NULL, 0, 16, NULL, VFU_REGION_FLAG_RW, NULL, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_setup_device_reset_cb(NULL, NULL), EINVAL);
    vfu_setup_device_quiesce_cb(NULL, NULL);
    CHECK_FAILS(vfu_device_quiesced(NULL, 0), EINVAL);
    CHECK_FAILS(vfu_setup_device_dma(NULL, 1, NULL, NULL), EINVAL);
    CHECK_FAILS(vfu_setup_device_nr_irqs(NULL, VFU_DEV_INTX_IRQ, 1), EINVAL);
    CHECK_FAILS(vfu_setup_irq_state_callback(NULL, VFU_DEV_INTX_IRQ, NULL), EINVAL);
    CHECK_FAILS(vfu_setup_device_migration_callbacks(NULL, NULL), EINVAL);
    CHECK_FAILS(vfu_irq_trigger(NULL, 0), EINVAL);
    CHECK_FAILS(vfu_create_ioeventfd(NULL, 0, -1, 0, 0, 0, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_pci_init(NULL, VFU_PCI_TYPE_EXPRESS, 0, 0), EINVAL);
    vfu_pci_set_id(NULL, 1, 2, 3, 4);
    vfu_pci_set_class(NULL, 1, 2, 3);
    CHECK_FAILS(vfu_pci_add_capability(NULL, 0, 0, data), EINVAL);
    CHECK_EQ(vfu_pci_find_capability(NULL, false, 1), 0);
    CHECK_EQ(vfu_pci_find_next_capability(NULL, false, 0, 1), 0);
    CHECK_FAILS(vfu_addr_to_sgl(NULL, NULL, 1, (dma_sg_t *)sg, 1, PROT_READ), EINVAL);
    CHECK_FAILS(vfu_sgl_get(NULL, (dma_sg_t *)sg, &iov, 1, 0), EINVAL);
    vfu_sgl_put(NULL, (dma_sg_t *)sg, &iov, 1);
    vfu_sgl_mark_dirty(NULL, (dma_sg_t *)sg, 1);
    CHECK_FAILS(vfu_sgl_read(NULL, (dma_sg_t *)sg, 1, data, 0), EINVAL);
    CHECK_FAILS(vfu_sgl_write(NULL, (dma_sg_t *)sg, 1, data, 0), EINVAL);
    CHECK(!vfu_sg_is_mappable(NULL, (dma_sg_t *)sg));
}

static void
creation(void)
{
    char long_path[109];

    memset(long_path, 'x', sizeof(long_path) - 1);
    long_path[108] = '\0';
    errno = 0;
    CHECK(vfu_create_ctx(VFU_TRANS_SOCK, NULL, 0, NULL, VFU_DEV_TYPE_PCI) == NULL && errno == EINVAL);
    CHECK(vfu_create_ctx(VFU_TRANS_SOCK, socket_path, 2, NULL, VFU_DEV_TYPE_PCI) == NULL && errno == EINVAL);
    CHECK(vfu_create_ctx(VFU_TRANS_PIPE, socket_path, 0, NULL, VFU_DEV_TYPE_PCI) == NULL && errno == ENOTSUP);
    CHECK(vfu_create_ctx(77, socket_path, 0, NULL, VFU_DEV_TYPE_PCI) == NULL && errno == ENOTSUP);
    CHECK(vfu_create_ctx(VFU_TRANS_SOCK, socket_path, 0, NULL, 1) == NULL && errno == ENOTSUP);
    CHECK(vfu_create_ctx(VFU_TRANS_SOCK, long_path, 0, NULL, VFU_DEV_TYPE_PCI) == NULL && errno == ENAMETOOLONG);
    ctx = create();
    CHECK(vfu_create_ctx(VFU_TRANS_SOCK, socket_path, 0, NULL, VFU_DEV_TYPE_PCI) == NULL && errno == EADDRINUSE);
    CHECK_EQ(access(socket_path, F_OK), 0);
    vfu_destroy_ctx(ctx);
    CHECK(access(socket_path, F_OK) == -1 && errno == ENOENT);
}

static void
numbers_out_of_range(void)
{
    struct iovec area = { (void *)0x10, 0x10 };
    vfu_migration_callbacks_t callbacks = {
        .version = VFU_MIGR_CALLBACKS_VERS, transition_nothing, data_nothing, data_nothing };

    ctx = create();
    CHECK_FAILS(vfu_setup_log(ctx, NULL, -1), EINVAL);
    CHECK_FAILS(vfu_setup_log(ctx, NULL, 8), EINVAL);
    CHECK_FAILS(vfu_setup_device_nr_irqs(ctx, 5, 1), EINVAL);
    CHECK_FAILS(vfu_setup_device_nr_irqs(ctx, (enum vfu_dev_irq_type)UINT_MAX, 1), EINVAL);
    CHECK_FAILS(vfu_setup_irq_state_callback(ctx, 5, NULL), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, -1, 16, NULL, VFU_REGION_FLAG_RW, NULL, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, 9, 16, NULL, VFU_REGION_FLAG_RW, NULL, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, INT_MIN, 16, NULL, VFU_REGION_FLAG_RW, NULL, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, 0, 16, NULL, 0, NULL, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, 0, 16, NULL, -1, NULL, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, 0, 16, NULL, VFU_REGION_FLAG_RW, NULL, 1, -1, 0), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, 0, 16, NULL, VFU_REGION_FLAG_RW, &area, 0, 0, 0), EINVAL);
    CHECK_FAILS(vfu_setup_region(ctx, 0, 16, NULL, VFU_REGION_FLAG_RW, &area, 1, 0, 0), EINVAL);
    area.iov_base = (void *)UINTPTR_MAX;
    CHECK_FAILS(vfu_setup_region(ctx, 0, 16, NULL, VFU_REGION_FLAG_RW, &area, 1, 0, 0), EINVAL);
    CHECK_FAILS(vfu_pci_init(ctx, 4, 0, 0), EINVAL);
    CHECK_FAILS(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, 1, 0), EINVAL);
    vfu_pci_set_id(ctx, 1, 2, 3, 4);
    vfu_pci_set_class(ctx, 1, 2, 3);
    CHECK(vfu_pci_get_config_space(ctx) == NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, 0, 0), 0);
    CHECK_FAILS(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, 0, 0), EEXIST);
    CHECK_FAILS(vfu_pci_add_capability(ctx, 0, 0, NULL), EINVAL);
    CHECK_FAILS(vfu_setup_device_migration_callbacks(ctx, NULL), EINVAL);
    callbacks.version = 1;
    CHECK_FAILS(vfu_setup_device_migration_callbacks(ctx, &callbacks), EINVAL);
    callbacks.version = VFU_MIGR_CALLBACKS_VERS;
    callbacks.read_data = NULL;
    CHECK_FAILS(vfu_setup_device_migration_callbacks(ctx, &callbacks), EINVAL);
    CHECK_FAILS(vfu_create_ioeventfd(ctx, 0, -1, 0, 0, 0, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_create_ioeventfd(ctx, 9, -1, 0, 0, 0, 0, -1, 0), EINVAL);
    CHECK_EQ(vfu_setup_region(ctx, 0, 16, access_nothing, VFU_REGION_FLAG_RW, NULL, 0, -1, 0), 0);
    CHECK_FAILS(vfu_create_ioeventfd(ctx, 0, -1, SIZE_MAX, 2, 0, 0, -1, 0), EINVAL);
    CHECK_FAILS(vfu_create_ioeventfd(ctx, 0, -1, 0, 4, 0, 0, 0, 0), EINVAL);
    CHECK_EQ(vfu_create_ioeventfd(ctx, 0, -1, 12, 4, 0, 0, -1, 0), 0);
    vfu_destroy_ctx(ctx);
}

static void
wrong_order(void)
{
    char sg[64];
    struct iovec iov;

    ctx = create();
    CHECK_FAILS(vfu_run_ctx(ctx), EINVAL);          /* not realized */
    CHECK_FAILS(vfu_irq_trigger(ctx, 0), EINVAL);
    CHECK_FAILS(vfu_device_quiesced(ctx, 0), EINVAL);
    CHECK_FAILS(vfu_addr_to_sgl(ctx, NULL, 1, (dma_sg_t *)sg, 1, PROT_READ), EINVAL); /* no DMA */
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    CHECK_FAILS(vfu_attach_ctx(ctx), EAGAIN);
    CHECK_EQ(vfu_setup_device_dma(ctx, 1, dma_nothing, NULL), 0);
    memset(sg, 0, sizeof(sg));
    CHECK_FAILS(vfu_sgl_get(ctx, (dma_sg_t *)sg, &iov, 1, 0), EINVAL); /* zeros, no unregister callback */
    CHECK_EQ(vfu_setup_device_dma(ctx, 1, dma_nothing, dma_nothing), 0);
    CHECK_FAILS(vfu_sgl_get(ctx, (dma_sg_t *)sg, &iov, 1, 0), EINVAL); /* an entry of zeros */
    CHECK_FAILS(vfu_sgl_get(ctx, (dma_sg_t *)sg, NULL, 1, 0), EINVAL);
    CHECK_FAILS(vfu_sgl_get(ctx, NULL, &iov, 1, 0), EINVAL);
    CHECK_FAILS(vfu_addr_to_sgl(ctx, NULL, 1, NULL, 1, PROT_READ), EINVAL);
    CHECK_FAILS(vfu_addr_to_sgl(ctx, NULL, 1, (dma_sg_t *)sg, 1, PROT_READ), ENOENT);
    memset(sg, 0xa5, sizeof(sg)); /* an entry that was never filled in */
    CHECK_FAILS(vfu_sgl_get(ctx, (dma_sg_t *)sg, &iov, 1, 0), EINVAL);
    CHECK_FAILS(vfu_sgl_read(ctx, (dma_sg_t *)sg, 1, &iov, 0), EINVAL);
    CHECK_FAILS(vfu_sgl_read(ctx, (dma_sg_t *)sg, 2, &iov, 0), ENOTSUP);
    CHECK_FAILS(vfu_sgl_read(ctx, (dma_sg_t *)sg, 1, &iov, 0x42), EINVAL);
    CHECK(!vfu_sg_is_mappable(ctx, (dma_sg_t *)sg));
    vfu_sgl_put(ctx, (dma_sg_t *)sg, &iov, 1);
    vfu_sgl_put(ctx, NULL, NULL, 1);
    vfu_sgl_mark_dirty(ctx, NULL, 1);
    vfu_destroy_ctx(ctx);
}

static char last_line[9000];

static void
keep_line(vfu_ctx_t *c, int level, const char *line)
{
    (void)c, (void)level;
    snprintf(last_line, sizeof(last_line), "%s", line);
    errno = EXDEV; /* the library has to keep the caller's */
}

static void
logging(void)
{
    char long_text[10000];

    memset(long_text, 'y', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    ctx = create();
    vfu_log(ctx, LOG_ERR, "before a function is set");
    CHECK_EQ(vfu_setup_log(ctx, keep_line, LOG_INFO), 0);
    errno = ENOSPC;
    vfu_log(ctx, LOG_INFO, "%d %s %m", 42, "things");
    CHECK_EQ(errno, ENOSPC);
    CHECK(strcmp(last_line, "42 things No space left on device") == 0);
    vfu_log(ctx, LOG_DEBUG, "above the level");
    vfu_log(ctx, LOG_ERR, NULL);
    CHECK(strncmp(last_line, "42 things", 9) == 0);
    vfu_log(ctx, LOG_ERR, "%s", long_text);
    CHECK_EQ(strlen(last_line), 8191);
    vfu_log(ctx, LOG_ERR, "caf\xc3\xa9 \xff.");
    CHECK(strncmp(last_line, "caf\xc3\xa9 ", 6) == 0 && strchr(last_line, '\xff') == NULL);
    CHECK_EQ(vfu_setup_log(ctx, NULL, LOG_DEBUG), 0);
    last_line[0] = '\0';
    vfu_log(ctx, LOG_ERR, "nobody listens any more");
    CHECK_EQ(last_line[0], '\0');
    vfu_destroy_ctx(ctx);
}

int
main(void)
{
    make_socket_folder();
    RUN(no_context);
    RUN(creation);
    RUN(numbers_out_of_range);
    RUN(wrong_order);
    RUN(logging);
    remove_socket_folder();
    return check_result();
}
