"""The kernels of sparse layers. Without a C compiler the package installs without them, and layers stay dense."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "gentickets._sparse",
            ["src/gentickets/_sparse.c"],
            depends=["src/gentickets/_sparse_body.h"],
            extra_compile_args=["-O3", "-std=gnu11"],
            optional=True,
        )
    ]
)
