"""Tenants over HTTP: vLLM's load and unload, and put and delete. For whoever has the admin's key."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import PlainTextResponse

from .asking import Gone
from .bodies import LoadBody, UnloadBody
from .errors import Refused
from .json import Json
from .logs import say
from .service import Service
from .settings import LOOPBACK

_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}  # fmt: skip  # noqa: E501


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    roster = service.roster

    def admin(call: Call) -> None:
        """Raises: Refused (403) for whoever may not change tenants."""
        if call.state.key.admin:
            return
        if service.guard.guarded or service.guard.administered or not service.settings.loopback:
            raise Refused(
                403, "tenants are changed with the admin's key: --admin-key, or `commonweight keys add --admin`"
            )
        # a page in somebody's browser may reach this address under another name
        if call.url.hostname not in LOOPBACK:
            raise Refused(403, "without an admin's key, tenants are changed at localhost alone")

    @router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load(call: Call, body: LoadBody) -> Any:
        """vLLM's. lora_path: a folder that PEFT wrote, or a tenant's file, on the server's machine."""
        admin(call)
        await service.run(roster.load, body.lora_name, body.lora_path, body.load_inplace)
        say("loaded", tenant=body.lora_name, source=body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload(call: Call, body: UnloadBody) -> Any:
        """vLLM's. A tenant of the store is loaded again when it is asked for."""
        admin(call)
        await service.run(roster.unload, body.lora_name)
        say("unloaded", tenant=body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    @router.put("/v1/tenants/{name}", openapi_extra=_FILE, responses={201: {"description": "A new tenant."}})
    async def put(call: Call, name: str) -> Any:
        """The body is a tenant's file. It is published in the store where there is one, and answers from now on."""
        admin(call)
        with tempfile.TemporaryDirectory(prefix="commonweight-") as folder:
            path = Path(folder) / "tenant.safetensors"
            try:
                with path.open("wb") as f:
                    async for part in call.stream():
                        await service.run(f.write, part)
            except ClientDisconnect as e:
                raise Gone from e
            size = path.stat().st_size
            if not size:
                raise Refused(400, "the body is empty; wanted a tenant's file")
            made, new = await service.run(roster.put, name, path)
        say("put", tenant=name, version=made and made.version, bytes=size)
        told = {"id": name, "object": "tenant", "version": made and made.version, "bytes": size}
        return Json(told, 201 if new else 200)

    @router.delete("/v1/tenants/{name}")
    async def delete(call: Call, name: str) -> Any:
        """From memory and from the store; its pools leave the folder with `commonweight store gc`."""
        admin(call)
        await service.run(roster.delete, name)
        say("deleted", tenant=name)
        return Json({"id": name, "object": "tenant", "deleted": True})

    return router
