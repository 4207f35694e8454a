"""Which packages there are: kernels/ and bench/ are installed below `batchline`. All
else is in setup.cfg.
"""

from setuptools import find_packages, setup

FOLDERS = ("kernels", "bench")

setup(
    package_dir={f"batchline.{folder}": folder for folder in FOLDERS},
    packages=[
        "batchline",
        *(
            f"batchline.{name}"
            for folder in FOLDERS
            for name in (
                folder,
                *(f"{folder}.{below}" for below in find_packages(folder)),
            )
        ),
    ],
)
