/* The device of the session; see session.h.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../c/check.h"
#include "session.h"
#include "shim.h"

#include <libvfio-user-ext.h>

static char bar[BAR_SIZE];

static ssize_t
bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    SHIM_OUTSIDE;
    (void)ctx;
    if (is_write) {
        memcpy(bar + offset, buf, count);
    } else {
        memcpy(buf, bar + offset, count);
    }
    return count;
}

static int
reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    (void)ctx, (void)type;
    return 0;
}

static int
quiesce(vfu_ctx_t *ctx)
{
    struct device *device = vfu_get_private(ctx);

    if (device->quiesce_later) {
        device->quiesce_later = false;
        errno = EBUSY;
        return -1;
    }
    return 0;
}

static void
dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfux_credentials_t client;

    CHECK(info != NULL && info->iova.iov_len > 0);
    ((struct device *)vfu_get_private(ctx))->dma_regions++;
    if (vfux_get_client_credentials(ctx, &client) == 0) {
        CHECK_EQ(client.pid, getpid());
    } else {
        CHECK(shim_fired());
    }
}

static void
dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    struct device *device = vfu_get_private(ctx);

    CHECK(info != NULL && info->iova.iov_len > 0);
    device->dma_regions--;
    CHECK(device->dma_regions >= 0);
}

static void
irq_state(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    (void)ctx, (void)start, (void)count, (void)mask;
}

static int
transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    (void)ctx, (void)state;
    return 0;
}

static ssize_t
read_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    SHIM_OUTSIDE;
    (void)ctx;
    memset(buf, 0x5a, count);
    return count;
}

static ssize_t
write_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    SHIM_OUTSIDE;
    (void)ctx;
    for (uint64_t i = 0; i < count; i++) {
        CHECK_EQ(((unsigned char *)buf)[i], 0x5a);
    }
    return count;
}

static void
log_line(vfu_ctx_t *ctx, int level, const char *text)
{
    SHIM_OUTSIDE;
    (void)ctx, (void)level;
    CHECK(strlen(text) > 0);
}

/* A call that only a fault can make fail. */
#define ONCE_MORE(call)                     \
    do {                                    \
        bool before_ = shim_fired();        \
        if (VFU(call) < 0) {                \
            CHECK(!before_ && shim_fired()); \
            CHECK(VFU(call) >= 0);          \
        }                                   \
    } while (0)

static void
set_up(struct device *device)
{
    vfu_ctx_t *ctx = device->ctx;
    struct iovec areas[] = { { NULL, 0x1000 }, { (void *)0x2000, 0x1000 } };
    const vfu_migration_callbacks_t migration = { .version = VFU_MIGR_CALLBACKS_VERS, .transition = transition,
                                                  .read_data = read_data, .write_data = write_data };
    struct {
        uint8_t id, next, bytes[6];
    } pm = { .id = PCI_CAP_ID_PM };

    ONCE_MORE(vfu_setup_log(ctx, log_line, 7));
    ONCE_MORE(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0));
    ONCE_MORE(vfu_pci_add_capability(ctx, 0, 0, &pm));
    ONCE_MORE(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                               -1, 0));
    ONCE_MORE(vfu_setup_region(ctx, 1, 0x4000, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, areas, 2,
                               device->bar_fd, 0));
    ONCE_MORE(vfu_setup_device_dma(ctx, 64, dma_register, dma_unregister));
    ONCE_MORE(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 8));
    ONCE_MORE(vfu_setup_irq_state_callback(ctx, VFU_DEV_MSIX_IRQ, irq_state));
    ONCE_MORE(vfu_setup_device_reset_cb(ctx, reset));
    ONCE_MORE(vfu_setup_device_migration_callbacks(ctx, &migration));
    VFU_VOID(vfu_setup_device_quiesce_cb(ctx, quiesce));
    for (int i = 0; i < 2; i++) {
        ONCE_MORE(vfu_create_ioeventfd(ctx, 0, device->io_fds[i], 0x100 + 8 * i, 4, 0, 0, -1, 0));
    }
    ONCE_MORE(vfu_realize_ctx(ctx));
    if (device->kind != SESSION_BLOCKING) {
        ONCE_MORE(vfu_get_poll_fd(ctx));
    }
}

void
device_create(struct device *device, enum session_kind kind, const char *path)
{
    int flags = kind == SESSION_BLOCKING ? 0 : LIBVFIO_USER_FLAG_ATTACH_NB;

    *device = (struct device) { .kind = kind, .bar_fd = memfd_create("bar", MFD_CLOEXEC) };
    CHECK_EQ(ftruncate(device->bar_fd, 0x4000), 0);
    for (int i = 0; i < 2; i++) {
        device->io_fds[i] = eventfd(0, EFD_CLOEXEC);
    }
    /* Making a device is no request: without memory for it the process ends, as it does in
     * other libraries. System calls may fail. */
    shim_spares_memory = true;
    device->ctx = VFU(vfu_create_ctx(VFU_TRANS_SOCK, path, flags, device, VFU_DEV_TYPE_PCI));
    if (device->ctx == NULL) {
        CHECK(shim_fired());
        device->ctx = VFU(vfu_create_ctx(VFU_TRANS_SOCK, path, flags, device, VFU_DEV_TYPE_PCI));
        CHECK(device->ctx != NULL);
    }
    set_up(device);
    shim_spares_memory = false;
}

void
device_destroy(struct device *device)
{
    VFU_VOID(vfu_destroy_ctx(device->ctx));
    CHECK_EQ(device->dma_regions, 0);
    close(device->bar_fd);
    close(device->io_fds[0]);
    close(device->io_fds[1]);
}

static void
use_mapped(struct device *device, dma_sg_t *sg, size_t length)
{
    struct iovec iov = { 0 };

    if (VFU(vfu_sgl_get(device->ctx, sg, &iov, 1, 0)) == 0) {
        CHECK_EQ(iov.iov_len, length);
        ((volatile char *)iov.iov_base)[length - 1]++;
        VFU_VOID(vfu_sgl_put(device->ctx, sg, &iov, 1));
    } else {
        CHECK(errno != 0);
    }
}

void
device_use_memory(struct device *device, uint64_t iova, size_t length, int flags)
{
    char space[40];
    dma_sg_t *sg = (dma_sg_t *)space;
    char *data = malloc(length);
    int count = VFU(vfu_addr_to_sgl(device->ctx, (void *)iova, length, sg, 1, PROT_READ | PROT_WRITE));

    if (count == 1) {
        if (VFU(vfu_sg_is_mappable(device->ctx, sg))) {
            use_mapped(device, sg, length);
        }
        memset(data, 0x33, length);
        if (VFU(vfu_sgl_write(device->ctx, sg, 1, data, flags)) == 0) {
            memset(data, 0, length);
            if (VFU(vfu_sgl_read(device->ctx, sg, 1, data, flags)) == 0) {
                for (size_t i = 0; i < length; i++) {
                    CHECK_EQ(data[i], 0x33);
                }
            }
        }
        VFU_VOID(vfu_sgl_mark_dirty(device->ctx, sg, 1));
    } else {
        CHECK(shim_fired()); /* the map failed */
    }
    free(data);
}

void
device_trigger(struct device *device)
{
    for (uint32_t i = 0; i < 3; i++) {
        if (VFU(vfu_irq_trigger(device->ctx, i)) < 0) {
            CHECK(i == 2 ? errno == ENOENT || shim_fired() : shim_fired());
        }
    }
}
