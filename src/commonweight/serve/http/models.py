"""OpenAI's list of models: the plain one, and the tenants that a key may ask."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as Call

from .json import Json
from .service import Service
from .settings import BASE


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    settings = service.settings

    @router.get("/v1/models")
    async def models(call: Call) -> Any:
        """The plain model, and every tenant that the key may ask."""
        key = call.state.key
        plain = [_card(service, n) for n in settings.names[:2] if key.may(BASE)]
        tenants = await service.run(service.names, key)
        return Json({"object": "list", "data": [*plain, *(_card(service, n) for n in tenants)]})

    @router.get("/v1/models/{model:path}")
    async def model(call: Call, model: str) -> Any:
        """One of them, with its method, its bytes, and where it is."""
        name = await service.tenant(call, model)
        about = None if name is None else await service.run(service.about, name)
        return Json({**_card(service, model), "commonweight": about})

    return router


def _card(service: Service, name: str) -> dict[str, Any]:
    plain = name in service.settings.names
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "commonweight",
        "root": service.settings.name if plain else name, "parent": None if plain else service.settings.name,
        "max_model_len": service.engine.length, "permission": [],
    }  # fmt: skip
