"""The request handlers for names: decode what the kernel says, call `vfs`, encode the answer.

Purpose
    In shared mode other mounts change names, too, and the kernel may take a name for something else than it is: what it
    would then do wrong with its own entries is decided here, with what fuse.told and fuse.repeats know.

Invariants
    NM1 `forget` takes back what `remember` counted (fuse.answers).

Concurrency
    Trio tasks of pyfuse3.

Not here
    Other handlers (fuse.operations), errors (fuse.boundary), what the kernel is made to forget (fuse.caches).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from functools import partial

from pyfuse3 import RENAME_EXCHANGE, RENAME_NOREPLACE, EntryAttributes, FUSEError, RequestContext

from flakefs.errors import Exists, FlakeError, NotMeant, Stale
from flakefs.fuse.answers import Answers, caller
from flakefs.fuse.boundary import answered, silent
from flakefs.fuse.repeats import Asked, Found, Kind
from flakefs.fuse.told import Place
from flakefs.namespace import Inode

log = logging.getLogger(__name__)


class Naming(Answers):
    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        place, repeats = (self._stand_ins.real(parent_inode), name), self._caches.repeats
        fresh = repeats.is_repeating(ctx.pid, place)
        inode = await self._fs.lookup(*place, fresh=fresh)
        repeats.looked_up(ctx.pid, place, inode.ino if inode is not None else 0)
        if inode is None:
            if not self._caches.quiet:
                return self._missing_now
            self._caches.given(*place, None)
            return self._missing
        if self._ns.shared and self._caches.stands_in(place, inode, ctx.pid):
            return self._stand_ins.made_of(self._passing(inode), inode.ino)
        older = self._ns.shared and self._caches.has_older_name(place, inode)
        self._fs.remember(inode.ino)
        self._caches.given(*place, inode)
        return self._passing(inode) if older else self._entry(inode)

    @silent
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            if real := self._stand_ins.forget(ino):
                self._caches.drop_inode(real, content=False)
                continue
            try:
                self._fs.forget(ino, count)
            except FlakeError as error:
                log.error("forget of inode %d: %s", ino, error)

    @answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        parent_inode = self._stand_ins.real(parent_inode)
        inode = await self._fs.mknod(parent_inode, name, mode, rdev, caller(ctx))
        return self._given(parent_inode, name, inode)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        parent_inode = self._stand_ins.real(parent_inode)
        inode = await self._fs.mkdir(parent_inode, name, mode, caller(ctx))
        return self._given(parent_inode, name, inode)

    @answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        parent_inode = self._stand_ins.real(parent_inode)
        inode = await self._fs.symlink(parent_inode, name, target, caller(ctx))
        return self._given(parent_inode, name, inode)

    @answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        place = self._stand_ins.real(new_parent_inode), new_name
        if self._ns.shared:
            call = partial(self._check_name, inode, reread=True)
            await self._caches.repeats.once(ctx.pid, Asked(Kind.LINK, place), call)
        return self._given(*place, await self._fs.link(inode, *place))

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        place, told = (self._stand_ins.real(parent_inode), name), self._caches.told
        removed = await self._fs.unlink(*place)
        if self._ns.shared and removed.nlink and not told.agrees(place, removed):  # it counts another's links
            self._caches.drop_inode(removed.ino, content=False)
        told.unknown(place)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        place, told = (self._stand_ins.real(parent_inode), name), self._caches.told
        if not self._ns.shared:
            await self._fs.rmdir(*place)
        else:

            async def rmdir(found: Found | None) -> None:
                def meant(folder: Inode) -> bool:
                    return found is not None or self._holds(place, folder, found)

                await self._fs.rmdir(*place, meant=meant)

            await self._caches.repeats.once(ctx.pid, Asked(Kind.REMOVE, place), rmdir)
        told.unknown(place)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        exchange, noreplace = bool(flags & RENAME_EXCHANGE), bool(flags & RENAME_NOREPLACE)
        real = self._stand_ins.real
        old, new = (real(parent_inode_old), name_old), (real(parent_inode_new), name_new)
        if not self._ns.shared:
            await self._fs.rename(*old, *new, noreplace=noreplace, exchange=exchange)
            self._caches.told.clear()  # what is changed while alone is not noted
            return
        agreed, moved, other, replaced = False, 0, 0, 0

        async def rename(found: Found | None) -> None:
            def meant(source: Inode, target: Inode | None) -> bool:
                nonlocal agreed, moved, other, replaced
                known = target is None or self._holds(new, target, found)
                same = known or not (exchange or source.entries is not None)  # else its own folder is taken for removed
                agreed = self._caches.quiet and same and self._holds(old, source, found)
                moved, other = source.ino, target.ino if exchange and target is not None else 0
                replaced = target.ino if target is not None and not known else 0
                return agreed or found is not None

            try:
                await self._fs.rename(*old, *new, noreplace=noreplace, exchange=exchange, meant=meant)
            except Exists:
                if found is None:
                    raise NotMeant(f"there is a {name_new!r}, which the kernel was told is not there") from None
                self._caches.drop_entry(*new)  # it would go on believing that
                raise

        await self._caches.repeats.once(ctx.pid, Asked(Kind.RENAME, old, new=new, flags=flags), rename)
        self._caches.renamed(old, new, moved, other, agreed=agreed)
        if replaced:  # the kernel counts the links of something else
            self._caches.drop_inode(replaced, content=False)
        if (parent_inode_old, parent_inode_new) != (old[0], new[0]):  # it has moved what lies below a stand-in
            self._caches.drop_entry(*old)
            self._caches.drop_entry(*new)

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._fs.readlink(self._stand_ins.real(inode))

    # helpers

    def _holds(self, place: Place, inode: Inode | None, found: Found | None) -> bool:
        """Does the kernel, which asks by this name, take it for the inode? *found*: by the repeat that asks (RP4)."""
        if found is not None and place in found:
            return found[place] == (inode.ino if inode is not None else 0)
        return self._caches.told.agrees(place, inode)

    async def _check_name(self, ino: int, found: Found | None, *, reread: bool = False) -> None:
        """K7: NotMeant, but for a repeat, when the kernel may take another name for it than the one that it has."""
        if found is not None:
            return
        try:
            known = await self._ns.reread(ino) if reread else self._ns.known(ino) or await self._fs.inode(ino)
        except Stale:
            raise NotMeant(f"inode {ino} is gone, and the name by which it was found leads elsewhere") from None
        if self._caches.misled(known) or not known.nlink:
            raise NotMeant(f"the name by which inode {ino} was found leads elsewhere by now")
