/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calls of both generations, as C and as C++: which function each ends in, and
 * with which arguments. Without NEW_CALLS_ONLY it has to be refused when
 * LIBVFIO_USER_NO_COMPAT is defined.
 */
#include <libvfio-user.h>

#include <stdio.h>
#include <stdlib.h>

#ifdef __cplusplus
#define NOTHING nullptr
#else
#define NOTHING NULL
#endif

static size_t got_max_regions, got_sg_cnt;
static vfu_dma_register_cb_t *got_register;
static vfu_dma_unregister_cb_t *got_unregister;
static void *got_data;
static int got_flags;

/* The library, for this program. */
int (vfu_setup_device_dma)(vfu_ctx_t *vfu_ctx, size_t max_regions, vfu_dma_register_cb_t *dma_register,
			   vfu_dma_unregister_cb_t *dma_unregister)
{
	(void)vfu_ctx;
	got_max_regions = max_regions;
	got_register = dma_register;
	got_unregister = dma_unregister;
	return 1;
}

/* A definition without parentheses has as many parameters as a new call. */
int vfu_sgl_read(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags)
{
	(void)vfu_ctx;
	(void)sg;
	got_sg_cnt = sg_cnt;
	got_data = data;
	got_flags = flags;
	return 2;
}

int (vfu_sgl_write)(vfu_ctx_t *vfu_ctx, dma_sg_t *sg, size_t sg_cnt, void *data, int flags)
{
	(vfu_sgl_read)(vfu_ctx, sg, sg_cnt, data, flags);
	return 3;
}

static void on_register(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info)
{
	(void)vfu_ctx;
	(void)info;
}

static void on_unregister(vfu_ctx_t *vfu_ctx, vfu_dma_info_t *info)
{
	(void)vfu_ctx;
	(void)info;
}

#define EXPECT(what) \
	do { \
		if (!(what)) { \
			printf("line %d: %s\n", __LINE__, #what); \
			exit(1); \
		} \
	} while (0)

#define CALLBACKS on_register, on_unregister

#ifdef __cplusplus
template <size_t A, size_t B> struct sum {
	static constexpr size_t value = A + B;
};
#endif

int main(void)
{
	vfu_ctx_t *ctx = NOTHING;
	dma_sg_t *sg = NOTHING;
	int data;
	int (*read)(vfu_ctx_t *, dma_sg_t *, size_t, void *, int) = vfu_sgl_read;
	int (*write)(vfu_ctx_t *, dma_sg_t *, size_t, void *, int) = &vfu_sgl_write;
	int (*setup)(vfu_ctx_t *, size_t, vfu_dma_register_cb_t *, vfu_dma_unregister_cb_t *) = vfu_setup_device_dma;

	/* The interface of today. */
	EXPECT(vfu_setup_device_dma(ctx, 5, on_register, on_unregister) == 1);
	EXPECT(got_max_regions == 5 && got_register == on_register && got_unregister == on_unregister);
	EXPECT(vfu_setup_device_dma(ctx, 6, CALLBACKS) == 1 && got_max_regions == 6);
	EXPECT(vfu_sgl_read(ctx, sg, 7, &data, VFU_SGL_DIRECT_ACCESS) == 2);
	EXPECT(got_sg_cnt == 7 && got_data == &data && got_flags == VFU_SGL_DIRECT_ACCESS);
	EXPECT(vfu_sgl_write(ctx, sg, 8, NOTHING, VFU_SGL_DIRECT_ACCESS) == 3);
	EXPECT(got_sg_cnt == 8 && got_data == NOTHING && got_flags == VFU_SGL_DIRECT_ACCESS);

	/* By address, and with the macros out of the way. */
	EXPECT(setup(ctx, 9, NOTHING, NOTHING) == 1 && got_max_regions == 9);
	EXPECT(read(ctx, sg, 1, &data, 1) == 2 && write(ctx, sg, 1, &data, 1) == 3);
	EXPECT((vfu_sgl_read)(ctx, sg, 1, &data, 0) == 2 && got_flags == 0);

	/* A call inside of a call. */
	EXPECT(vfu_sgl_write(ctx, sg, (size_t)vfu_sgl_read(ctx, sg, 1, &data, 0), &data, 1) == 3);
	EXPECT(got_sg_cnt == 2 && got_flags == 1);

#ifdef __cplusplus
	/* The commas of a template count as the preprocessor counts them. */
	EXPECT(vfu_setup_device_dma(ctx, sum<1, 2>::value, on_register, on_unregister) == 1 && got_max_regions == 3);
	EXPECT(vfu_sgl_read(ctx, sg, sum<1, 2>::value, &data, 1) == 2 && got_sg_cnt == 3 && got_flags == 1);
#endif

#ifndef NEW_CALLS_ONLY
	/* The interface of before. */
	EXPECT(vfu_setup_device_dma(ctx, on_register, on_unregister) == 1);
	EXPECT(got_max_regions == LIBVFIO_USER_MAX_DMA_REGIONS);
	EXPECT(got_register == on_register && got_unregister == on_unregister);
	EXPECT(vfu_setup_device_dma(ctx, CALLBACKS) == 1 && got_max_regions == LIBVFIO_USER_MAX_DMA_REGIONS);
	EXPECT(vfu_setup_device_dma(ctx, NOTHING, NOTHING) == 1 && got_register == NOTHING);
	EXPECT(vfu_sgl_read(ctx, sg, 4, &data) == 2);
	EXPECT(got_sg_cnt == 4 && got_data == &data && got_flags == 0);
	EXPECT(vfu_sgl_write(ctx, sg, 5, NOTHING) == 3);
	EXPECT(got_sg_cnt == 5 && got_data == NOTHING && got_flags == 0);
#endif
	return 0;
}
