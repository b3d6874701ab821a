"""The kernels of sparse layers, and the recipes. Without a C compiler the package installs without kernels, and layers
stay dense."""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


class WithRecipes(build_py):
    """Puts the recipes, which lie beside the package in a checkout, into what is installed."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "gentickets", "recipes")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("recipes", target)


setup(
    cmdclass={"build_py": WithRecipes},
    ext_modules=[
        Extension(
            "gentickets._kernels",
            ["src/gentickets/_kernels.c"],
            depends=["src/gentickets/_kernels_body.h"],
            extra_compile_args=["-O3", "-g0", "-std=gnu11", "-Wno-psabi"],
            optional=True,
        )
    ],
)
