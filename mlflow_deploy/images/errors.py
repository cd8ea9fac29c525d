"""What can go wrong with images: one class per thing a user can do about it."""

from __future__ import annotations

from mlflow_deploy.errors import DeployError


class ImageError(DeployError):
    """An image cannot be built, moved or read."""

    code = "IMAGE_ERROR"


class EngineNotRunning(ImageError):
    """No Docker engine answers."""

    code = "ENGINE_NOT_RUNNING"
    mlflow_code = "TEMPORARILY_UNAVAILABLE"

    def __init__(self, address: str, why: str) -> None:
        super().__init__(
            f"No Docker engine answers at {address}",
            why=why,
            hint="Start it (`systemctl start docker`, or `dockerd`), or set DOCKER_HOST or "
            "`docker context use` to an engine that runs; nothing was changed",
        )


class EnginePermission(ImageError):
    """The user may not talk to the Docker engine."""

    code = "ENGINE_PERMISSION"
    mlflow_code = "PERMISSION_DENIED"

    def __init__(self, address: str) -> None:
        super().__init__(
            f"You may not talk to the Docker engine at {address}",
            why="permission denied on its socket",
            hint="Join the group `docker` and log in again, or use an engine of your own with DOCKER_HOST; "
            "nothing was changed",
        )


class EngineFailed(ImageError):
    """The engine answered with an error that no other class names."""

    code = "ENGINE_FAILED"

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why=why, hint="`docker info` and the engine's log tell more")


class NoDiskSpace(ImageError):
    """The disk of the engine or of this machine is full."""

    code = "NO_DISK_SPACE"
    mlflow_code = "RESOURCE_EXHAUSTED"

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"No space was left on the disk while {what}",
            why=why,
            hint="Free space with `mlflow-deploy image prune` and `docker system prune`; "
            "what was half made has been removed",
        )


class BaseImageNotFound(ImageError):
    """The base image is neither on the engine nor can it be pulled."""

    code = "BASE_IMAGE_NOT_FOUND"
    mlflow_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self, image: str, why: str) -> None:
        super().__init__(
            f"The base image {image!r} is not on the engine and cannot be pulled",
            why=why,
            hint="Check its name, log in with `docker login`, or set base_image to one you have",
        )


class BaseImageUnsuitable(ImageError):
    """The base image lacks what a runtime needs."""

    code = "BASE_IMAGE_UNSUITABLE"
    mlflow_code = "INVALID_PARAMETER_VALUE"

    def __init__(self, image: str, why: str) -> None:
        super().__init__(
            f"The base image {image!r} cannot carry this model",
            why=why,
            hint="Use a base_image with the right Python and its venv module, such as python:3.11-slim",
        )


class RequirementsUnresolved(ImageError):
    """pip finds no set of packages that meets the requirements."""

    code = "REQUIREMENTS_UNRESOLVED"
    mlflow_code = "BAD_REQUEST"

    def __init__(self, why: str) -> None:
        super().__init__(
            "The requirements of the image do not resolve",
            why=why,
            hint="Set index_url, extra_index_urls or wheels to where the packages are, or requirements to a "
            "file that replaces the model's own; nothing was built",
        )


class RequirementRefused(ImageError):
    """A model's requirement would install code from a place that nobody allowed."""

    code = "REQUIREMENT_REFUSED"
    mlflow_code = "INVALID_PARAMETER_VALUE"

    def __init__(self, line: str, why: str) -> None:
        super().__init__(
            f"The model's requirement {line!r} is refused",
            why=why,
            hint="Put wheels of such packages into the folder of `wheels` and name them in a file given as "
            "`requirements`, and indexes into `extra_index_urls`",
        )


class IndexUnreachable(ImageError):
    """The package index does not answer."""

    code = "INDEX_UNREACHABLE"
    mlflow_code = "TEMPORARILY_UNAVAILABLE"

    def __init__(self, why: str) -> None:
        super().__init__(
            "The package index does not answer",
            why=why,
            hint="Check index_url, ca_bundle and the proxies; nothing was built",
        )


class PipMissing(ImageError):
    """This Python has no pip, which resolves the requirements."""

    code = "PIP_MISSING"

    def __init__(self, python: str) -> None:
        super().__init__(
            f"{python} has no usable pip",
            why="the requirements of an image are resolved and fetched by pip 23 or newer",
            hint="Install it with `python -m ensurepip --upgrade`, or `uv pip install pip`",
        )


class PythonMismatch(ImageError):
    """The model was logged with another Python than the one that would resolve its requirements."""

    code = "PYTHON_MISMATCH"
    mlflow_code = "INVALID_PARAMETER_VALUE"

    def __init__(self, wanted: str, here: str, whose: str) -> None:
        super().__init__(
            f"{whose} Python {wanted}, and this is Python {here}",
            why="requirements are resolved by the Python that runs this command, and differ between versions",
            hint=f"Run mlflow-deploy with Python {wanted}, or set python={here} if the model runs on it",
        )


class BuildFailed(ImageError):
    """The engine could not build the image."""

    code = "IMAGE_BUILD_FAILED"

    def __init__(self, image: str, why: str) -> None:
        super().__init__(
            f"The image {image} could not be built",
            why=why,
            hint="What was half made has been removed; `--output DIR` writes the build context to look at",
        )


class ImageNameTaken(ImageError):
    """An image of this name exists that mlflow_deploy did not make."""

    code = "IMAGE_NAME_TAKEN"
    mlflow_code = "RESOURCE_ALREADY_EXISTS"

    def __init__(self, image: str) -> None:
        super().__init__(
            f"The image name {image} is taken",
            why="an image of that name exists and does not carry the labels of this tool",
            hint="Choose another with repository= and tag=, or remove it with `docker image rm`; "
            "it was not touched",
        )


class ImageNotFound(ImageError):
    """No image of ours has this name or model."""

    code = "IMAGE_NOT_FOUND"
    mlflow_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"There is no image of {what}", hint="List them with `mlflow-deploy image ls`, or build it first"
        )


class RegistryRefused(ImageError):
    """A registry does not take or give the image."""

    code = "REGISTRY_REFUSED"
    mlflow_code = "PERMISSION_DENIED"

    def __init__(self, image: str, what: str, why: str) -> None:
        super().__init__(
            f"The registry did not {what} {image}",
            why=why,
            hint="Log in with `docker login`, and check the registry's address, the repository and your rights",
        )


class OutputNotEmpty(ImageError):
    """The folder for the build context holds something else."""

    code = "OUTPUT_NOT_EMPTY"
    mlflow_code = "RESOURCE_ALREADY_EXISTS"

    def __init__(self, folder: str) -> None:
        super().__init__(
            f"The folder {folder} is not empty",
            why="a build context must hold nothing but its own files",
            hint="Give a new or an empty folder",
        )
