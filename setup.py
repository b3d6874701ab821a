"""The kernels of sparse layers. Without a C compiler the package installs without them, and layers stay dense."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "gentickets._kernels",
            ["src/gentickets/_kernels.c"],
            depends=["src/gentickets/_kernels_body.h"],
            extra_compile_args=["-O3", "-g0", "-std=gnu11", "-Wno-psabi"],
            optional=True,
        )
    ]
)
