/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The functions of <libvfio-user-ext.h> without a context, and with nothing to
 * put results in: no crash, and errno that says why.
 *
 * Usage: extension PATH, where PATH is free for a socket.
 */
#include <libvfio-user-ext.h>

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* A call that has to fail with -1 and an errno. */
#define FAILS(call, number) \
	do { \
		errno = 0; \
		if ((call) != -1 || errno != (number)) { \
			printf("line %d: %s, errno %d\n", __LINE__, #call, errno); \
			exit(1); \
		} \
	} while (0)

/* A call that has to fail with NULL and an errno. */
#define MAKES_NONE(call, number) \
	do { \
		errno = 0; \
		if ((call) != NULL || errno != (number)) { \
			printf("line %d: %s, errno %d\n", __LINE__, #call, errno); \
			exit(1); \
		} \
	} while (0)

int main(int argc, char **argv)
{
	vfux_credentials_t credentials;
	char bytes[8];
	vfu_ctx_t *ctx;

	if (argc != 2 || (ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, NULL, VFU_DEV_TYPE_PCI)) == NULL)
		return 1;

	MAKES_NONE(vfux_create_ctx_replacing(NULL, 0, NULL, VFU_DEV_TYPE_PCI), EINVAL);
	MAKES_NONE(vfux_create_ctx_replacing(argv[1], 0, NULL, VFU_DEV_TYPE_PCI), EADDRINUSE);
	MAKES_NONE(vfux_create_ctx_replacing(argv[1], 2, NULL, VFU_DEV_TYPE_PCI), EINVAL);
	MAKES_NONE(vfux_create_ctx_replacing(argv[1], 0, NULL, (vfu_dev_type_t)1), ENOTSUP);
	MAKES_NONE(vfux_create_ctx_over_fd(-1, 0, NULL, VFU_DEV_TYPE_PCI), EBADF);
	MAKES_NONE(vfux_create_ctx_over_fd(INT_MAX, 0, NULL, VFU_DEV_TYPE_PCI), EBADF);
	MAKES_NONE(vfux_create_ctx_over_fd(0, 2, NULL, VFU_DEV_TYPE_PCI), EINVAL);
	MAKES_NONE(vfux_create_ctx_over_fd(0, 0, NULL, (vfu_dev_type_t)1), ENOTSUP);

	FAILS(vfux_setup_pending_irqs(NULL), EINVAL);
	FAILS(vfux_irq_trigger(NULL, VFU_DEV_REQ_IRQ, 0), EINVAL);
	FAILS(vfux_irq_trigger(ctx, VFU_DEV_NUM_IRQS, 0), EINVAL);
	FAILS(vfux_irq_clear_pending(NULL, VFU_DEV_MSIX_IRQ, 0), EINVAL);
	FAILS(vfux_irq_clear_pending(ctx, VFU_DEV_NUM_IRQS, 0), EINVAL);
	FAILS(vfux_read_pba(NULL, bytes, sizeof(bytes), 0), EINVAL);
	FAILS(vfux_read_pba(ctx, NULL, sizeof(bytes), 0), EINVAL);
	FAILS(vfux_read_pba(ctx, bytes, sizeof(bytes), 0), EINVAL);
	FAILS(vfux_get_dma_access(NULL, NULL), EINVAL);
	FAILS(vfux_get_dma_access(ctx, NULL), ENOENT);
	FAILS(vfux_refuse_dma_region(NULL, EPERM), EINVAL);
	FAILS(vfux_refuse_dma_region(ctx, EPERM), EINVAL);
	FAILS(vfux_get_client_credentials(NULL, &credentials), EINVAL);
	FAILS(vfux_get_client_credentials(ctx, NULL), EINVAL);
	FAILS(vfux_get_client_credentials(ctx, &credentials), ENOTCONN);

	MAKES_NONE(vfux_create_ctx_taking_over(NULL, 1, 0, NULL, VFU_DEV_TYPE_PCI), EINVAL);
	MAKES_NONE(vfux_create_ctx_taking_over("/nowhere/at/all", 0, 0, NULL, VFU_DEV_TYPE_PCI), EINVAL);
	MAKES_NONE(vfux_create_ctx_taking_over("/nowhere/at/all", 1, 0, NULL, VFU_DEV_TYPE_PCI), ENOENT);
	MAKES_NONE(vfux_create_ctx_taking_over_fd(-1, 1, 0, NULL, VFU_DEV_TYPE_PCI), EBADF);
	MAKES_NONE(vfux_create_ctx_taking_over_fd(0, -1, 0, NULL, VFU_DEV_TYPE_PCI), EINVAL);
	FAILS(vfux_setup_hand_over(NULL, argv[1]), EINVAL);
	FAILS(vfux_setup_hand_over(ctx, NULL), EINVAL);
	FAILS(vfux_setup_hand_over(ctx, argv[1]), EADDRINUSE);
	FAILS(vfux_setup_hand_over_fd(ctx, -1), EBADF);
	FAILS(vfux_setup_hand_over_callbacks(NULL, NULL), EINVAL);
	if (vfux_setup_hand_over_callbacks(ctx, NULL) != 0)
		return 1;
	FAILS(vfux_put_state(ctx, bytes, sizeof(bytes)), EINVAL);
	FAILS(vfux_add_hand_over_fd(ctx, NULL, 0), EINVAL);
	FAILS(vfux_add_hand_over_fd(ctx, "", 0), EINVAL);
	FAILS(vfux_add_hand_over_fd(ctx, "name", -1), EBADF);
	FAILS(vfux_get_hand_over_fd(NULL), EINVAL);
	FAILS(vfux_get_hand_over_fd(ctx), ENOENT);
	FAILS(vfux_hand_over(NULL, 1), EINVAL);
	FAILS(vfux_hand_over(ctx, 0), EINVAL);
	FAILS(vfux_hand_over(ctx, 1), ENOENT);
	FAILS(vfux_take_over(NULL, 1), EINVAL);
	FAILS(vfux_take_over(ctx, 1), EINVAL);
	FAILS(vfux_get_old_region(ctx, 0, NULL), EINVAL);
	FAILS(vfux_get_old_ioeventfd(ctx, 0, 0, NULL), EINVAL);
	FAILS(vfux_get_old_irq_count(ctx, VFU_DEV_MSIX_IRQ), EINVAL);
	FAILS(vfux_get_old_config_space(ctx, bytes, sizeof(bytes), 0), EINVAL);
	FAILS(vfux_get_old_fd(ctx, "name"), EINVAL);
	FAILS(vfux_get_old_fd(ctx, NULL), EINVAL);

	FAILS(vfux_setup_dma_policy(NULL, VFUX_DMA_POLICY_ANY), EINVAL);
	FAILS(vfux_setup_dma_policy(ctx, -1), EINVAL);
	FAILS(vfux_setup_dma_lost_cb(NULL, NULL), EINVAL);
	if (vfux_sg_is_lost(NULL, NULL) || vfux_sg_is_lost(ctx, NULL))
		return 1;

	vfu_destroy_ctx(ctx);
	return 0;
}
