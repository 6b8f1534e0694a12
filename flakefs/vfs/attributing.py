"""Operations on attributes: setattr, extended attributes, facts, access, statfs.

Concurrency
    Trio task only. What is in memory is answered without a checkpoint.

Not here
    The rules (vfs.attributes, vfs.xattrs), what the facts are (vfs.facts).
"""

from __future__ import annotations

import logging

from flakefs.errors import InvalidArgument, NoAttribute, UsageError
from flakefs.format.placement import copies
from flakefs.namespace import Inode
from flakefs.values import SEGMENT_BYTES
from flakefs.vfs import attributes, facts, replication, xattrs
from flakefs.vfs.files import Files
from flakefs.vfs.requests import Caller, Changes, StatFs

log = logging.getLogger(__name__)

BLOCK_SIZE = 4096
FILES_FREE = 2**40
"""Inode numbers do not run out. Told when the metadata server does not say how much room its disk has."""


class Attributing(Files):
    async def setattr(self, ino: int, changes: Changes, caller: Caller) -> Inode:
        """chmod, chown, truncate, utimens in one."""
        ns = self.ns
        if not ns.shared:
            inode = await self._setattr(ino, changes, caller)
            if not ns.shared or await ns.committed():
                return inode
        if changes.size is not None:
            await self._store_first(ino)
        return await self._shown(await ns.redone(lambda: self._setattr(ino, changes, caller)))

    async def _setattr(self, ino: int, changes: Changes, caller: Caller) -> Inode:
        inode = await self._inode(ino)
        ns = self.ns
        ns.check_writable()
        await ns.room()
        if changes.size is not None:
            await self._truncate(inode, changes.size)
        ns.changed(inode)
        now = self._clock()
        ns.set_times(inode, now, mtime=changes.mtime is not None, atime=changes.atime is not None)
        attributes.apply(inode, changes, caller, now)
        return inode

    async def setxattr(
        self, ino: int, name: bytes, value: bytes, *, create: bool = False, replace: bool = False
    ) -> None:
        ns = self.ns
        if not ns.shared:
            await self._setxattr(ino, name, value, create, replace)
            if not ns.shared or await ns.committed():
                return
        await ns.redone(lambda: self._setxattr(ino, name, value, create, replace))

    async def _setxattr(self, ino: int, name: bytes, value: bytes, create: bool, replace: bool) -> None:
        inode = await self._inode(ino)
        ns = self.ns
        ns.check_writable()
        await ns.room()
        changed = xattrs.with_attribute(inode, name, value, create=create, replace=replace)
        if name == replication.ATTRIBUTE and value != inode.xattrs.get(name):
            try:
                self.check_replication(value)
            except InvalidArgument as error:  # setfattr only says EINVAL
                log.info("replication of inode %d (%r) stays as it is: %s", ino, inode.name, error)
                raise
        ns.changed(inode)
        inode.xattrs = changed
        inode.ctime = self._clock()

    def check_replication(self, value: bytes) -> None:
        """Raise InvalidArgument for a code that is none, or that the nodes cannot satisfy."""
        code = replication.checked(value)
        try:
            self.engine.check_code(code)
        except UsageError as error:
            raise InvalidArgument(str(error)) from None

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        inode = await self._inode(ino)
        found = inode.xattrs.get(name)
        if found is not None:
            return found
        xattrs.check_name(inode, name, writing=False)
        if name == replication.ATTRIBUTE:  # asked for whole trees: no map has to be loaded for it
            return self.default_code.encode()
        if name.startswith(xattrs.FACTS):
            found = (await self.facts(ino)).get(name[len(xattrs.FACTS) :])
            if found is not None:
                return found
        raise NoAttribute(f"there is no attribute {name.decode(errors='replace')}")

    async def listxattr(self, ino: int, caller: Caller) -> list[bytes]:
        return xattrs.listed(await self._inode(ino), caller)

    async def removexattr(self, ino: int, name: bytes) -> None:
        ns = self.ns
        if not ns.shared:
            await self._removexattr(ino, name)
            if not ns.shared or await ns.committed():
                return
        await ns.redone(lambda: self._removexattr(ino, name))

    async def _removexattr(self, ino: int, name: bytes) -> None:
        inode = await self._inode(ino)
        ns = self.ns
        ns.check_writable()
        await ns.room()
        changed = xattrs.without_attribute(inode, name)
        ns.changed(inode)
        inode.xattrs = changed
        inode.ctime = self._clock()

    async def facts(self, ino: int) -> dict[bytes, bytes]:
        """What FlakeFS knows about an inode: fact by name (without "user.flakefs.")."""
        inode = await self.inode(ino)
        if inode.map is not None:
            stop = min(inode.size, 16 * SEGMENT_BYTES)
            if not inode.map.loaded(0, stop):
                await self.ns.load(inode, 0, stop)
        return facts.facts(inode, self.chunk_size, self.default_code)

    async def access(self, ino: int, mode: int, caller: Caller) -> bool:
        """access(2) by the permission bits, the primary group and the owner."""
        return attributes.may_access(await self._inode(ino), mode, caller)

    async def statfs(self) -> StatFs:
        space = await self.engine.space()
        files = await self.ns.inode_count()
        room = self.ns.inode_room
        more = FILES_FREE if room is None else room
        each = BLOCK_SIZE * copies(self.default_code)  # what a block of new content takes
        free = space.free_bytes // each
        return StatFs(BLOCK_SIZE, space.total_bytes // each, free, free, files + more, more)
