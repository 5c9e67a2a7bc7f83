package main

// mutation is one deliberate defect.
type mutation struct {
	name  string
	what  string // in words, for the table
	edits []edit
	pkg   string // where the test is, below the module's root
	test  string // its name; a slash leads to a subtest
	tags  string // build tags of the test
	hang  bool   // the defect is that something never ends
	quick bool   // CI runs it
}

// edit replaces old, which is in the file exactly once, by new.
type edit struct{ file, old, new string }

const (
	tagged = "uffdpager_invariants"
)

var table = []mutation{
	// What a page shows.
	{
		name:  "skip-write-protect",
		what:  "pages are installed writable: a store to a clean page is not seen",
		edits: []edit{{"pager/born.go", "mapPages(d.addr(first), src, size, true)", "mapPages(d.addr(first), src, size, false)"}},
		pkg:   "tests/model", test: "TestNoUpdateIsLost/procs=2", quick: true,
	},
	{
		name:  "copy-unprotected",
		what:  "a dirty page is copied out without being protected first",
		edits: []edit{{"pager/writeback.go", "if !pinned && protectVia(d.addr(first), uintptr(k)<<d.shift, true) != 0 {", "if false {"}, {"pager/span.go", "if protectVia(d.addr(first), uintptr(end-first)<<d.shift, true) == 0 {", "if _, _ = first, end; true {"}},
		pkg:   "tests/model", test: "TestNoUpdateIsLost/procs=2",
	},
	{
		name:  "span-over-writable-pages",
		what:  "pages in between are write-protected together with the dirty ones although they are to be writable",
		edits: []edit{{"pager/span.go", "for page := from; page < to; page++ {", "for page := to; page < to; page++ {"}},
		pkg:   "pager", test: "TestSpanEndsBeforeWritablePages", quick: true,
	},
	{
		name:  "span-not-waited-for",
		what:  "a page becomes writable while it is being write-protected with others",
		edits: []edit{{"pager/span.go", "bare.Load64(&d.span) == v; turn++", "false; turn++"}},
		pkg:   "pager", test: "TestWritablePagesWaitForTheSpan",
	},
	{
		name:  "generations-of-words",
		what:  "each word counts its claims, and begins anew in the next leaf: an owner that has lost the page takes it for his",
		edits: []edit{{"pager/table.go", "n := newGen() | stLoading | extra", "n := (w&genMask + 1<<32) | stLoading | extra"}},
		pkg:   "pager", test: "TestAReadThatWasTakenOverIsDropped", quick: true,
	},
	{
		name:  "born-without-credit",
		what:  "a page that is read for a store is mapped as Dirty although nobody has brought a credit for it",
		edits: []edit{{"pager/born.go", " && w&pinMask != 0\n}", "\n}"}},
		pkg:   "pager", test: "TestWhatIsBornDirty", quick: true,
	},
	{
		name:  "born-in-the-cut",
		what:  "a page that is read for a store is mapped writable while a commit takes its cut",
		edits: []edit{{"pager/born.go", "if bare.Load32(&d.cut) != 0 {", "if false {"}},
		pkg:   "pager", test: "TestWhatIsBornDirty", quick: true,
	},
	{
		name:  "cut-passes-the-born",
		what:  "a commit's cut does not wait for a page that is just being mapped as Dirty",
		edits: []edit{{"pager/cut.go", "case stInstalling, stDirty,", "case stDirty,"}},
		pkg:   "pager", test: "TestCutWaitsForPagesBeingBorn", quick: true,
	},
	{
		name:  "born-pin-taken",
		what:  "Close takes the pin, and so the credit, of a page that is just being mapped as Dirty",
		edits: []edit{{"pager/kept.go", "case w&stateMask == stInstalling:", "case false:"}},
		pkg:   "pager", test: "TestPinsStayWhileAPageIsBorn", quick: true,
	},
	{
		name:  "born-taken-back",
		what:  "pages that are mapped as Dirty, and may have been stored to, go again if the kernel refuses the next",
		edits: []edit{{"pager/born.go", "at, errno := mapFrames(d.addr(first), src, size, false)", "at, errno := size, mapPages(d.addr(first), src, size, false)\n\tif errno != 0 {\n\t\tat = 0\n\t}"}},
		pkg:   "pager", test: "TestBornAmongOthers", quick: true,
	},
	{
		name:  "served-writes-not-flushed",
		what:  "Close does not flush what a fault server has written just before",
		edits: []edit{{"pager/servewrite.go", "bare.Store32(&d.unflushed, 1)", "bare.Store32(&d.unflushed, 0)"}},
		pkg:   "pager", test: "TestCloseFlushesWhatServersWrote", quick: true,
	},
	{
		name:  "large-page-born-open",
		what:  "the frames of a large page that is written whole can be stored to before all of them are there",
		edits: []edit{{"pager/born.go", "mapPages(d.addr(page), src, d.pageSize(), large)", "mapPages(d.addr(page), src, d.pageSize(), false)"}},
		pkg:   "pager", test: "TestLargePagesAreOpenedWhole", quick: true,
	},
	{
		name:  "moved-page-open",
		what:  "a page that was moved in is left writable, as it arrives",
		edits: []edit{{"pager/move.go", "errno = protectVia(dst, at, true)", "errno = 0"}},
		pkg:   "pager", test: "TestMovedPagesAreProtected", quick: true,
	},
	{
		name:  "moved-and-denied",
		what:  "what the kernel says it has not moved is copied from where it was",
		edits: []edit{{"pager/move.go", "e != 0 && e != uintptr(syscall.EBUSY)", "false && e != uintptr(syscall.EBUSY)"}},
		pkg:   "pager", test: "TestMovedAndDenied", quick: true,
	},
	{
		name:  "moved-and-shelved",
		what:  "the buffer of a page that is moved to its place is kept for ReadAt to copy from",
		edits: []edit{{"pager/load.go", "err == nil && !move && l.kind == ahead", "err == nil && l.kind == ahead"}},
		pkg:   "pager", test: "TestScanOfMovedPages", quick: true,
	},
	{
		name:  "moved-and-looked-at",
		what:  "a page is moved out of the buffer in which the policy wants to look at it",
		edits: []edit{{"pager/move.go", " && !l.r.ahead.wants.Load()", ""}},
		pkg:   "pager", test: "TestPagesThatAreLookedAtAreNotMoved", quick: true,
	},
	{
		name:  "scans-leave-in-pieces",
		what:  "what many scans leave behind them is unmapped by a window at a time",
		edits: []edit{{"pager/drops.go", "run.r.domain.cold++", "run.r.domain.cold = 0"}},
		pkg:   "pager", test: "TestScansLeaveByWindows",
	},
	{
		name:  "reads-without-bound",
		what:  "who misses large pages has as many buffers as the queue depth allows",
		edits: []edit{{"pager/load.go", "sum <= p.flightLimit() || sum == n", "sum > 0"}},
		pkg:   "pager", test: "TestBytesUnderWayAreBounded",
	},
	{
		name:  "moved-marker-given-back",
		what:  "the buffer that a marker is kept in goes to the next read as well",
		edits: []edit{{"pager/marker.go", "l.buf.lent.Add(1)", "_ = l.buf.lent.Load()"}},
		pkg:   "pager", test: "TestMovedMarkersGiveWay", quick: true,
	},
	{
		name:  "through-and-for-store",
		what:  "a page that is written through counts as writable if somebody has joined to store to it",
		edits: []edit{{"pager/through.go", "flagWaited|flagForStore, 0)", "flagWaited, 0)"}},
		pkg:   "pager", test: "TestWhoJoinsAPageWrittenThrough", quick: true,
	},
	{
		name:  "born-is-lent",
		what:  "a page that can be stored to as soon as it is mapped is read from where it was read to",
		edits: []edit{{"pager/load.go", "case born(old):", "case false:"}},
		pkg:   "pager", test: "TestBornPagesAreNotLent", quick: true,
	},
	{
		name:  "old-buffer-lent",
		what:  "who waits for a page is shown what it was before it left and came again",
		edits: []edit{{"pager/wait.go", "if pw == nil || uint32(v>>32) != gen {", "if pw == nil {"}},
		pkg:   "pager", test: "TestAnOldBufferIsNotLent", quick: true,
	},
	{
		name:  "redirtied-is-clean",
		what:  "a page that was written to while it was being written counts as clean afterwards",
		edits: []edit{{"pager/writeback.go", "case w&(flagRedirtied|flagWritePin) != 0:", "case w&flagWritePin != 0:"}},
		pkg:   "tests/model", test: "TestNoUpdateIsLost/procs=2",
	},
	{
		name:  "write-pin-forgotten",
		what:  "a page somebody may be writing to by DMA becomes clean when it is written",
		edits: []edit{{"pager/writeback.go", "if w&flagWritePin != 0 {\n\t\t\tif k > 0 {", "if false {\n\t\t\tif k > 0 {"}, {"pager/writeback.go", "case w&(flagRedirtied|flagWritePin) != 0:", "case w&flagRedirtied != 0:"}},
		pkg:   "tests/model", test: "TestDMAUnderWritebackReachesTheStore",
	},
	{
		name:  "dirty-bit-late",
		what:  "a page becomes writable without being marked dirty in its leaf: Sync overlooks it",
		edits: []edit{{"pager/fault.go", "\td.markDirty(page)\n\tif bare.Load32(&d.cut) != 0 && !force {", "\tif bare.Load32(&d.cut) != 0 && !force {"}, {"pager/born.go", "\tfor i := 0; i < n; i++ {\n\t\td.markDirty(first + uint64(i))\n\t}\n\tif bare.Load32", "\tif bare.Load32"}},
		pkg:   "pager", test: "TestCheckQuietHoldsWhereAllIsWell", tags: tagged, quick: true,
	},
	{
		name:  "generation-unchecked",
		what:  "whoever comes back from a read installs it, whoever the page belongs to by then",
		edits: []edit{{"pager/load.go", "if pw == nil || w&stateMask != stLoading || uint32(w>>32) != gen {\n\t\t\t\trs.code", "if pw == nil || w&stateMask != stLoading || gen == 0 {\n\t\t\t\trs.code"}, {"pager/state.go", "if w&stateMask != from || uint32(w>>32) != gen {", "if w&stateMask != from {"}},
		pkg:   "pager", test: "TestAReadThatWasTakenOverIsDropped", quick: true,
	},
	{
		name:  "ignore-eexist",
		what:  "a page that is partly there already counts as installed",
		edits: []edit{{"pager/kernel.go", "unmapVia(dst+at, n-at)\n\t\t\tcontinue", "return n, 0"}},
		pkg:   "pager", test: "TestInstallOverALeftover", quick: true,
	},
	{
		name:  "short-read-is-whole",
		what:  "what a short read has not filled is installed as if it had been read",
		edits: []edit{{"pager/load.go", "if int64(op.N) < want {", "if false {"}},
		pkg:   "tests/hostile", test: "TestRandomReadErrors", quick: true,
	},
	{
		name:  "tail-not-zeroed",
		what:  "the end of the last page shows what was in the buffer",
		edits: []edit{{"pager/load.go", "\t\t\tclear(op.Buf[want:])\n", ""}},
		pkg:   "tests/hostile", test: "TestTheTailReadsAsZeros",
	},
	{
		name:  "failed-read-is-zeros",
		what:  "a page that could not be read is installed as it is",
		edits: []edit{{"pager/load.go", "\tif err == nil {\n\t\tinstallGroup(", "\terr = nil\n\tif err == nil {\n\t\tinstallGroup("}},
		pkg:   "tests/hostile", test: "TestReadErrors", quick: true,
	},
	{
		name:  "discard-leaves-the-page",
		what:  "Discard punches the store and leaves what is in memory",
		edits: []edit{{"pager/resize.go", "\tif err := r.dropPages(ctx, pr); err != nil {\n\t\treturn err\n\t}\n\tif err := r.store.Discard", "\tif err := r.store.Discard"}, {"pager/resize.go", "\treturn r.dropPages(ctx, pr)\n", "\treturn nil\n"}},
		pkg:   "pager", test: "TestResizeAndDiscard", quick: true,
	},
	{
		name:  "past-the-end",
		what:  "raw access past the end of a region that was made shorter is served",
		edits: []edit{{"pager/fault.go", "if off >= bare.Load64(&d.length) {\n\t\tf.Errno = errnoRange\n\t\treturn coro.Deliver\n\t}", "_ = off"}, {"pager/fault.go", "if page<<d.shift >= bare.Load64(&d.length) {\n\t\t\treturn errnoRange\n\t\t}", ""}, {"pager/fault.go", "\tif d.past(page) {\n\t\terrno = errnoRange\n\t}\n", ""}, {"pager/housekeep.go", "if off >= bare.Load64(&r.d.length) {", "if off > 1<<62 {"}, {"pager/table.go", "return page<<d.shift >= bare.Load64(&d.length)", "return false"}},
		pkg:   "pager", test: "TestResizeAndDiscard",
	},
	{
		name:  "read-only-is-writable",
		what:  "a store to a read-only region is let through",
		edits: []edit{{"pager/fault.go", "if f.Access != coro.Read && flags&descReadOnly != 0 {", "if false {"}},
		pkg:   "tests/hostile", test: "TestReadOnlyRefusesWrites", quick: true,
	},

	// Memory, pins, credits.
	{
		name:  "evict-pinned",
		what:  "a pinned page leaves",
		edits: []edit{{"pager/leave.go", "if w&pinMask != 0 {\n\t\treturn evict.Busy\n\t}\n", ""}, {"pager/leave.go", "s&stateMask != stResident || s&(pinMask|flagTouched) != 0", "s&stateMask != stResident || s&flagTouched != 0"}},
		pkg:   "tests/liveness", test: "TestPinnedPagesStay", quick: true,
	},
	{
		name:  "steal-pinned",
		what:  "the fault server takes the frame of a pinned page",
		edits: []edit{{"pager/fault.go", "if w&pinMask != 0 || d.words.servedLately(", "if d.words.servedLately("}},
		pkg:   "pager", test: "TestStealingSparesPins",
	},
	{
		name:  "frames-given-twice",
		what:  "every page that leaves gives its frame back twice: the budget grows",
		edits: []edit{{"pager/leave.go", "\t\tp.w.giveFrames(frames)\n", "\t\tp.w.giveFrames(2 * frames)\n"}},
		pkg:   "pager", test: "TestFramesComeBack", quick: true,
	},
	{
		name:  "frame-lost-on-error",
		what:  "a read that fails keeps its frame",
		edits: []edit{{"pager/wait.go", "\tp.unreserve(r.fpp)\n\tp.transition()\n", ""}},
		pkg:   "pager", test: "TestFramesComeBack", quick: true,
	},
	{
		name:  "dirty-without-credit",
		what:  "a page becomes dirty without a credit: all of the budget can be dirty",
		edits: []edit{{"pager/fault.go", "bring := !hasCredit(w)", "bring := false && !hasCredit(w)"}},
		pkg:   "pager", test: "TestCheckQuietHoldsWhereAllIsWell", tags: tagged,
	},
	{
		name:  "kept-credit-lost",
		what:  "a page that leaves takes the credit with it that it had kept",
		edits: []edit{{"pager/leave.go", "first.d.words.returnKept(credits)", "add64(&first.d.words.kept, -credits)"}},
		pkg:   "pager", test: "TestKeptCreditsComeBack", quick: true,
	},
	{
		name:  "kept-credit-stays",
		what:  "a fault server uses its reserve while clean pages keep credits",
		edits: []edit{{"pager/servewrite.go", " || reclaimVia(d.words, max(d.framesPerPage(), reclaimFew), maxLeaves) > 0 {", " {"}},
		pkg:   "pager", test: "TestKeptCreditsComeBack",
	},
	{
		name:  "set-budget-at-once",
		what:  "SetBudget returns before the pages have left",
		edits: []edit{{"pager/budget.go", "if free >= 0 && left >= -p.creditTight(frames) {", "if true {"}, {"pager/budget.go", "if load64(&p.w.free) >= 0 {", "if true {"}},
		pkg:   "tests/liveness", test: "TestSetBudgetHoldsWhenItReturns", quick: true,
	},
	{
		name:  "stopped-in-between",
		what:  "code that leaves pages in a state between can be preempted where nosplit functions call each other",
		edits: []edit{{"coro/unstopped_unsafe_linux_amd64.go", "\tprocPin()\n\treturn 0", "\treturn 0"}, {"coro/unstopped_unsafe_linux_amd64.go", "{ procUnpin() }", "{}"}},
		pkg:   "coro", test: "TestUnstopped", quick: true,
	},
	{
		name:  "slack-is-pinned",
		what:  "a dirty page is pinned although its credit is one of the last, which are for blocked stores",
		edits: []edit{{"pager/acquire.go", " || w&(pinMask|flagKept) == 0 && r.p.w.tight()", ""}},
		pkg:   "pager", test: "TestTightCreditsAreNotClaimed", quick: true,
	},
	{
		name:  "slack-goes-to-the-line",
		what:  "a credit that comes back goes to the first in line before it pays for what blocked stores have taken",
		edits: []edit{{"pager/line.go", " && !p.w.tight() {", " {"}},
		pkg:   "pager", test: "TestTightCreditsAreNotClaimed",
	},
	{
		name:  "slack-flies",
		what:  "the pages that blocked stores could clean go on their way to the store",
		edits: []edit{{"pager/writeback.go", "n = min(n, uint64(p.mayFly(r)))", "n += 0"}},
		pkg:   "pager", test: "TestTightCreditsAreNotClaimed",
	},
	{
		name:  "nobody-cleans-slack",
		what:  "pages that only blocked stores may clean are left to them although none comes",
		edits: []edit{{"pager/claims.go", "\t\trescueLater() // who wakes the housekeeper when he has looked\n", ""}},
		pkg:   "pager", test: "TestReadsOfTightPages", hang: true,
	},
	{
		name:  "set-budget-counts-slack",
		what:  "SetBudget returns with as much pinned as fits only with what blocked stores have beyond the limit",
		edits: []edit{{"pager/budget.go", "left >= -p.creditTight(frames)", "left >= -p.creditSlack(frames)"}},
		pkg:   "pager", test: "TestSetBudgetLeavesSlack",
	},
	{
		name:  "abandoned-pins-stay",
		what:  "an Acquire whose context ends keeps what it had pinned",
		edits: []edit{{"pager/wait.go", "\t// It is not recycled: the owner may still be taking it out of the line.\n\top.undo()\n", ""}},
		pkg:   "tests/liveness", test: "TestAbandonedRequestsLeaveNothingPinned", quick: true,
	},

	// Writing.
	{
		name:  "skip-flush",
		what:  "Sync returns when the store has taken the pages, without a flush",
		edits: []edit{{"pager/sync.go", "\tif failed != nil || s.nothing() {\n", "\tif true || failed != nil {\n"}},
		pkg:   "tests/model", test: "TestPowerLoss", quick: true,
	},
	{
		name:  "flush-before-writes",
		what:  "Sync flushes first and writes then",
		edits: []edit{{"pager/sync.go", "\treturn len(list) > 0\n", "\tpre := aio.Op{Code: aio.Flush, Done: func(*aio.Op) {}}\n\tr.store.Start(r.p.engine, []*aio.Op{&pre})\n\treturn len(list) > 0\n"}, {"pager/sync.go", "\tif failed != nil || s.nothing() {\n", "\tif true || failed != nil {\n"}},
		pkg:   "tests/model", test: "TestPowerLoss",
	},
	{
		name:  "clear-sticky-flush",
		what:  "a failed flush is told once and forgotten",
		edits: []edit{{"pager/sync.go", "\t\tif r.write.flushErr == nil {\n\t\t\tr.write.flushErr = err\n\t\t}\n", ""}},
		pkg:   "tests/hostile", test: "TestFailedFlushIsSticky", quick: true,
	},
	{
		name:  "flush-beside-not-waited-for",
		what:  "a flush that ends well right behind one that has failed, of which the kernel tells once, counts at once",
		edits: []edit{{"pager/flushes.go", "f.then, f.others = then, len(l.now)\n\t\tfor _, o := range l.now {", "f.then, f.others = then, 0\n\t\tfor _, o := range l.now[:0] {"}},
		pkg:   "pager", test: "TestAFlushBesideOneThatFails",
	},
	{
		name:  "early-flush-is-enough",
		what:  "a Sync that has flushed while it wrote does not flush at its end",
		edits: []edit{{"pager/sync.go", "\tif failed != nil || s.nothing() {\n", "\tif failed != nil || s.nothing() || !s.early.began.IsZero() {\n"}},
		pkg:   "pager", test: "TestSyncOfManyFlushesEarly", quick: true,
	},
	{
		name:  "early-flush-not-waited-for",
		what:  "a Sync ends while a flush that it has started is under way",
		edits: []edit{{"pager/earlyflush.go", "|| !s.onePartMore() {", "{"}, {"pager/earlyflush.go", "\tf.busy.Store(false)\n\ts.pageDone()\n", "\tf.busy.Store(false)\n"}},
		pkg:   "pager", test: "TestASyncWaitsForItsEarlyFlush",
	},
	{
		name:  "early-flush-error-lost",
		what:  "a flush that fails while its Sync still writes is not told",
		edits: []edit{{"pager/earlyflush.go", "\ts.flushed(op.Err)\n", ""}},
		pkg:   "pager", test: "TestAnEarlyFlushThatFails",
	},
	{
		name:  "checkpoint-crowds",
		what:  "a checkpoint starts all its writes at once, in front of reads that somebody waits for",
		edits: []edit{{"pager/journal/medium.go", "const scattered = 32\n", "const scattered = 4096\n"}},
		pkg:   "pager", test: "TestCheckpointLeavesRoomForReads",
	},
	{
		name:  "failed-write-is-clean",
		what:  "a page whose write failed becomes clean",
		edits: []edit{{"pager/writeback.go", "\t\tcase ok:\n", "\t\tcase ok || true:\n"}},
		pkg:   "tests/hostile", test: "TestWriteErrors", quick: true,
	},
	{
		name:  "late-write-in-a-solo-engine",
		what:  "a write that comes late for the engine of a Sync by its caller goes there although nobody reaps it any more",
		edits: []edit{{"pager/solo.go", "if e.a.open {", "if true {"}},
		pkg:   "pager", test: "TestWritesThatAreLateForTheEngine", hang: true,
	},
	{
		name:  "sync-takes-an-old-write",
		what:  "Sync is content with a write that began before the page was written to again",
		edits: []edit{{"pager/sync.go", "if _, again := s.again[page]; again && err == nil {", "if false {"}},
		pkg:   "tests/liveness", test: "TestSyncWritesAgainWhatChangedUnderWay", quick: true,
	},
	{
		name:  "close-without-sync",
		what:  "Close drops what is dirty",
		edits: []edit{{"pager/region.go", "\tsyncErr := r.syncForClose()\n", "\tvar syncErr error\n"}, {"pager/region.go", "if err := r.syncForClose(); err != nil && syncErr == nil {", "if err := error(nil); err != nil && syncErr == nil {"}},
		pkg:   "pager", test: "TestCloseKeepsWhatWasWrittenUnderAPin", quick: true,
	},

	{
		name:  "before-write-asked-early",
		what:  "BeforeWrite is asked before the copy is made, and what is copied may have changed",
		edits: []edit{{"pager/writeback.go", "\tfor took < n {\n\t\tk := r.copyOut(", "\tif r.opt.Writeback.BeforeWrite != nil {\n\t\tbare.Copy(unsafe.Pointer(&buf.mem[0]), bare.Ptr(r.d.addr(first)), uintptr(n<<r.shift))\n\t\tif !r.mayWrite(first, n, buf.mem[:n<<r.shift]) {\n\t\t\tbufs.put(buf)\n\t\t\treturn 0\n\t\t}\n\t}\n\tfor took < n {\n\t\tk := r.copyOut("}, {"pager/writeback.go", "if r.opt.Writeback.BeforeWrite != nil && !r.mayWrite(first, took, buf.mem[:took<<r.shift]) {", "if false {"}},
		pkg:   "pager", test: "TestBeforeWriteIsShownWhatIsWritten", quick: true,
	},
	{
		name:  "before-write-shown-the-page",
		what:  "BeforeWrite is shown the page, which goes on changing, and not the copy",
		edits: []edit{{"pager/writeback.go", "!r.mayWrite(first, took, buf.mem[:took<<r.shift]) {", "!r.mayWrite(first, took, unsafe.Slice((*byte)(bare.Ptr(r.d.addr(first))), took<<r.shift)) {"}},
		pkg:   "pager", test: "TestBeforeWriteIsShownWhatIsWritten",
	},
	{
		name:  "before-write-passed-by",
		what:  "a thread without a P writes pages although there is a BeforeWrite, which it cannot ask",
		edits: []edit{{"pager/map.go", "!o.Writeback.NoSteal && o.Writeback.BeforeWrite == nil && ", "!o.Writeback.NoSteal && "}},
		pkg:   "tests/hostile", test: "TestRawStoresAtTheLimit/BeforeWrite/kernel=true/block",
	},
	{
		name:  "no-steal-passed-by",
		what:  "a thread without a P writes pages in spite of NoSteal",
		edits: []edit{{"pager/map.go", "!o.Writeback.NoSteal && o.Writeback.BeforeWrite == nil && ", "o.Writeback.BeforeWrite == nil && "}},
		pkg:   "tests/hostile", test: "TestRawStoresAtTheLimit/NoSteal/kernel=true/block",
	},
	{
		name:  "stores-wait-anew",
		what:  "a blocked store whose page leaves while it waits begins to wait anew, and never ends",
		edits: []edit{{"pager/servewrite.go", "if since == 0 {\n\t\t\t\treturn 0 //", "if true {\n\t\t\t\treturn 0 //"}},
		pkg:   "tests/hostile", test: "TestRawStoresAtTheLimit/NoSteal/kernel=true/block", hang: true,
	},
	{
		name:  "all-frames-dirty",
		what:  "blocked stores make so much dirty that reading finds no frame",
		edits: []edit{{"pager/budget.go", "return n - min(5*p.largestPage.Load(), n/2)", "return n"}},
		pkg:   "tests/hostile", test: "TestRawStoresAtTheLimit/NoSteal/kernel=true/block", hang: true,
	},
	{
		name:  "through-while-held",
		what:  "a page is written through while the store is being cut there",
		edits: []edit{{"pager/through.go", "if writing = !d.held(page); writing {", "if writing = true; writing {"}},
		pkg:   "pager", test: "TestHeldPagesAreNotWrittenThrough", quick: true,
	},
	{
		name:  "through-before-the-log",
		what:  "a page is written through although BeforeWrite, NoSteal or a side store says otherwise",
		edits: []edit{{"pager/through.go", "return r.atomic == nil && r.write.side == nil && !o.NoSteal && o.BeforeWrite == nil && o.Policy == nil && o.Rate == 0 && sp.wp", "return o != nil && sp.wp"}},
		pkg:   "pager", test: "TestWhoseWritesAreNotThrough", quick: true,
	},
	{
		name:  "posted-while-held",
		what:  "a page is posted while the store is being cut there",
		edits: []edit{{"pager/posted.go", "if d.held(page) {", "if false {"}},
		pkg:   "pager", test: "TestHeldPagesAreNotPosted", quick: true,
	},
	{
		name:  "posted-and-waited-for",
		what:  "a page is posted that somebody waits for, or has a pin on",
		edits: []edit{{"pager/posted.go", "uint32(w>>32) != gen || w&(flagWaited|pinMask) != 0 {", "uint32(w>>32) != gen {"}},
		pkg:   "pager", test: "TestPagesThatAreWaitedForAreNotPosted", quick: true,
	},
	{
		name:  "posted-is-synced",
		what:  "a Sync does not wait for the write of a page that is posted",
		edits: []edit{{"pager/sync.go", "if pw == nil || !mayBeDirty(w) {\n\t\t\t\t\tbreak", "if pw == nil || !mayBeDirty(w) || st == stPosted {\n\t\t\t\t\tbreak"}},
		pkg:   "pager", test: "TestSyncWaitsForPostedPages", quick: true,
	},
	{
		name:  "posted-and-failed",
		what:  "a page that was posted counts as written although its write has failed",
		edits: []edit{{"pager/writeback.go", "!w.r.mapFailed(w.first) &&", "false &&"}, {"pager/writeback.go", "\tcase err == nil:\n\t\tp.keepPosted", "\tdefault:\n\t\tp.keepPosted"}},
		pkg:   "pager", test: "TestPostedPageWhoseWriteFails", quick: true,
	},
	{
		name:  "posted-seat-left-early",
		what:  "the buffer of a page that is posted is not found by who wants it mapped",
		edits: []edit{{"pager/posted.go", "if !done {\n\t\tbare.Store64(&p.w.posted[seat-1].gen, 0)", "if bare.Store64(&p.w.posted[seat-1].gen, 0); !done {"}},
		pkg:   "pager", test: "TestPostedPagesAreMappedForOthers", quick: true,
	},
	{
		name: "posted-by-another-write",
		what: "who wants a posted page mapped takes the buffer of an earlier write of it, whose seat is not free yet",
		edits: []edit{
			{"pager/posted.go", "bare.Store64(&s.gen, uint64(gen)<<32)", "bare.Store64(&s.gen, 1<<32)"},
			{"pager/posted.go", "bare.Load64(&s.gen) == w&genMask &&", "bare.Load64(&s.gen) == 1<<32 &&"},
		},
		pkg: "pager", test: "TestPostedAgainBeforeTheSeatIsFree", quick: true,
	},
	{
		name:  "posted-by-number-only",
		what:  "the buffer of a posted page is found by its generation, which another page has had as well, 2³² claims ago",
		edits: []edit{{"pager/posted.go", "== w&genMask && bare.Load64(&s.page) == postedKey(d, page) {", "== w&genMask {"}},
		pkg:   "pager", test: "TestPostedPagesWithTheSameGeneration", quick: true,
	},
	{
		name:  "posted-buffer-stays",
		what:  "a page that was mapped while it was posted keeps its buffer as well",
		edits: []edit{{"pager/posted.go", "if !r.d.loading(page, gen) {", "if false {"}},
		pkg:   "pager", test: "TestPostedPagesAreMappedForOthers/View", quick: true,
	},
	{
		name:  "waiters-of-a-page-that-left",
		what:  "who claims a page that has left before its waiters were told does not know of them",
		edits: []edit{{"pager/wait.go", "if bare.Cas64(pw, v, v|flagWaited) {", "if pw != nil {"}},
		pkg:   "pager", test: "TestWaitersOfAPageThatLeftAreToldByTheNext", quick: true,
	},
	{
		name:  "told-and-not-rung",
		what:  "who waits at the Bell does not hear that somebody else has settled his page",
		edits: []edit{{"pager/wait.go", "\t\tif alone {\n", "\t\tif alone && p == nil {\n"}},
		pkg:   "pager", test: "TestCloseBeforeTheBell", quick: true,
	},
	{
		name:  "nobody-at-the-bell",
		what:  "who is told before his read has ended leaves its completion to nobody",
		edits: []edit{{"pager/alone.go", "go p.watchBell()", "p.wg.Done()"}},
		pkg:   "pager", test: "TestTakenOverBeforeTheBell", quick: true,
	},
	{
		name: "never-by-way-of-a-buffer",
		what: "a ReadAt into memory of a region wants all its pages at the same time",
		edits: []edit{
			{"pager/readat.go", "if regionAt(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) != nil {\n\t\t\t\treturn r.readVia(b, off, page, last)\n\t\t\t}\n", ""},
			{"pager/readat.go", "if tries > 1 {\n\t\t\t\t\treturn r.readVia(b, off, page, last)\n\t\t\t\t}", ""},
		},
		pkg: "pager", test: "TestReadAtIntoPagesThatCannotBeReadyTogether", quick: true,
	},
	{
		name:  "lent-buffer-given-away",
		what:  "the buffer that a ReadAt is to copy from is read into again",
		edits: []edit{{"pager/buffers.go", "if b == nil || b.lent.Add(-1) >= 0 {", "if b.lent.Add(-1); b == nil {"}},
		pkg:   "pager", test: "TestLentBuffersComeBack", quick: true,
	},
	{
		name:  "singles-of-any-generation",
		what:  "a small buffer on the shelf is taken for a page that has been read again since",
		edits: []edit{{"pager/singles.go", "if !ok || s.ring[i].gen != gen {", "if !ok {"}},
		pkg:   "pager", test: "TestSinglesAgainstAModel", quick: true,
	},
	{
		name:  "pins-lent-in-writable",
		what:  "a pin of a page that can be stored to has the buffer that it was read to",
		edits: []edit{{"pager/map.go", "	d := r.d\n	if o.ReadOnly {", "	d := r.d\n	r.lends = true\n	if o.ReadOnly {"}},
		pkg:   "pager", test: "TestAMissThatPinsHasTheReadBuffer", quick: true,
	},
	{
		name:  "lent-to-nobody",
		what:  "the buffer for a pin stays out when its goroutine has lost patience",
		edits: []edit{{"pager/wait.go", "	op.undo()\n	op.putLoans()\n", "	op.undo()\n"}},
		pkg:   "pager", test: "TestLentPinsComeBack", quick: true,
	},
	{
		name:  "retry-not-without-a-p",
		what:  "a thread that waits takes an error that passes for one that does not",
		edits: []edit{{"pager/fault.go", "if d.tryAgain(errno, tries) && ", "if false && d.tryAgain(errno, tries) && "}},
		pkg:   "tests/hostile", test: "TestRawReadsAreRepeated", quick: true,
	},
	{
		name:  "spill-without-limit",
		what:  "pages are given places in a spill file that is full",
		edits: []edit{{"pager/where.go", "if add64(&d.sideUsed, 1) > d.sideMax {", "if add64(&d.sideUsed, 1) < 0 {"}},
		pkg:   "pager", test: "TestSpillLimitIsExact", quick: true,
	},
	{
		name:  "sums-after-the-data",
		what:  "checksums are not flushed before the blocks they are for are written",
		edits: []edit{{"pager/store/checksum_write.go", "\t\tif err == nil {\n\t\t\terr = c.flushSums()\n\t\t}\n", ""}},
		pkg:   "tests/durability", test: "TestAtomicPowerLossChecksummed",
	},
	{
		name:  "torn-block-refuses-the-cut",
		what:  "the data cannot be cut through a block that a crash has torn",
		edits: []edit{{"pager/store/checksum_write.go", "if errors.Is(err, ErrChecksum) {\n\t\t\twrong", "if false {\n\t\t\twrong"}},
		pkg:   "pager/store", test: "TestChecksummedCutsThroughWhatIsWrong", quick: true,
	},
	{
		name:  "record-without-checksums",
		what:  "the record of a commit has other checksums than those of its images",
		edits: []edit{{"pager/slotwrite.go", "\t\tr.checksums(slot, buf.mem[:n<<r.shift], entries)\n\t\tbufs.put(buf)\n", "\t\t_, _ = slot, entries\n\t\tbufs.put(buf)\n"}},
		pkg:   "pager", test: "TestRecordsHaveTheirImagesChecksums", quick: true,
	},
	{
		name:  "slots-taken-back-by-number",
		what:  "a commit that fails leaves out of what it takes back all images in slots of which one write failed",
		edits: []edit{{"pager/cut.go", "if _, gone := c.spoiled[i]; gone {", "if slices.ContainsFunc(c.entries, func(o journal.Entry) bool {\n\t\t\t_, gone := c.spoiled[slices.Index(c.entries, o)]\n\t\t\treturn gone && o.Slot == e.Slot\n\t\t}) {"}},
		pkg:   "pager", test: "TestSlotsThatOneCutUsesTwice", quick: true,
	},
	{
		name:  "checksums-of-slots",
		what:  "a record has the checksums of what is in its slots when it is made, whosever that is",
		edits: []edit{{"pager/commit.go", "\tfor tries := 0; ; tries++ {\n\t\trec, err := a.j.Record", "\tfor i := range c.entries {\n\t\tc.entries[i].CRC = *c.r.d.slotCRC(c.entries[i].Slot)\n\t}\n\tfor tries := 0; ; tries++ {\n\t\trec, err := a.j.Record"}},
		pkg:   "pager", test: "TestSlotsThatOneCutUsesTwice", quick: true,
	},
	{
		name:  "trim-before-checkpoint",
		what:  "Discard of an Atomic region punches the store at once, not with the checkpoint of its commit",
		edits: []edit{{"pager/resize.go", "\t\t// Holes of one's own are pages of zeros.\n", "\t\t_ = r.store.Discard(off, n)\n"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss", quick: true,
	},
	{
		name:  "commit-of-one-of-several",
		what:  "Pager.Commit returns when one of its regions is durable",
		edits: []edit{{"pager/commit.go", "\t\terrs[0] = cuts[0].finish()\n\t\twg.Wait()\n", "\t\terrs[0] = cuts[0].finish()\n\t\tgo wg.Wait()\n"}},
		pkg:   "tests/durability", test: "TestAtomicSeveralPowerLoss", quick: true,
	},
	{
		name:  "commit-without-flush",
		what:  "Commit is acknowledged before the journal is flushed",
		edits: []edit{{"pager/commit.go", "\tr.write.side.Start(e, []*aio.Op{c.flushed})\n", "\tc.flushed.Done(c.flushed)\n"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss", quick: true,
	},
	{
		name:  "commit-flushes-first",
		what:  "the journal is flushed before the record of the commit is written",
		edits: []edit{{"pager/commit.go", "\tc.begin(c.rec.Ops...)\n", "\tc.begin()\n\t_ = r.transfer(&aio.Op{Code: aio.Flush})\n\tc.begin(c.rec.Ops...)\n"}, {"pager/commit.go", "\tr.write.side.Start(e, []*aio.Op{c.flushed})\n", "\tc.flushed.Done(c.flushed)\n"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss",
	},
	{
		name:  "images-behind-a-hole",
		what:  "a page behind one that could not be copied gets the image of another",
		edits: []edit{{"pager/slotwrite.go", "from := (base + k) << r.shift", "from := base << r.shift"}},
		pkg:   "pager", test: "TestSpanWithHoles", quick: true,
	},
	{
		name:  "commit-flushes-beside-the-writes",
		what:  "the flush of a commit does not wait for the writes of its images and its record",
		edits: []edit{{"pager/commit.go", "\tc.write()\n\tc.await()\n\tc.flush(c.r", "\tc.write()\n\tc.flush(c.r"}, {"pager/commit.go", "if c.failed = cmp.Or(failed(c.rec.Ops), c.err); c.failed != nil {", "if c.failed = cmp.Or(failed(c.rec.Ops), c.err); false {"}, {"pager/commithere.go", "if c.spot.End(ctx.Done()); !c.writes.none() {", "if false {"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss",
	},
	{
		name:  "torn-image-believed",
		what:  "recovery believes a record whose images are not all there",
		edits: []edit{{"pager/journal/recover.go", "CRC32C(buf[int64(i)*page:int64(i+1)*page]) != x.CRC {", "false && CRC32C(buf[int64(i)*page:int64(i+1)*page]) != x.CRC {"}},
		pkg:   "pager/journal", test: "TestPowerLossAtEveryTick", quick: true,
	},
	{
		name:  "commit-left-and-believed",
		what:  "a caller whose context ends takes a flush that is under way for one that has ended",
		edits: []edit{{"pager/commithere.go", "if flush.End(ctx.Done()); !c.writes.none() {", "if flush.End(ctx.Done()); false {"}},
		pkg:   "pager", test: "TestWhoGoesLeavesHisCommit", quick: true,
	},
	{
		name:  "whole-write-inherits-an-error",
		what:  "who writes a page whole gets the error of a read of it that was under way",
		edits: []edit{{"pager/writewhole.go", "tries < 3 && r.notRead(page, err)", "false && r.notRead(page, err)"}},
		pkg:   "pager", test: "TestWholeWritesDoNotInheritReadErrors", quick: true,
	},
	{
		name:  "acknowledge-before-flush",
		what:  "a commit is acknowledged before its flush",
		edits: []edit{{"pager/commit.go", "if c.failed = cmp.Or(failed(c.rec.Ops), c.err); c.failed != nil {", "if c.failed = cmp.Or(failed(c.rec.Ops), c.err); true {"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss",
	},
	{
		name:  "in-place-before-the-journal",
		what:  "the images of a commit go in place before its record is durable",
		edits: []edit{{"pager/commit.go", "\tr.p.stats.flushes.Add(1)\n", "\t_, _ = r.atomic.j.Apply(context.Background(), r.store, journal.View([]journal.Commit{{Length: c.length, MinLength: c.minLength, Entries: c.entries}}, 1<<r.shift))\n\tr.p.stats.flushes.Add(1)\n"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss",
	},
	{
		name:  "image-checksum-ignored",
		what:  "a record counts although images of it have not arrived",
		edits: []edit{{"pager/journal/recover.go", "CRC32C(buf[int64(i)*page:int64(i+1)*page]) != x.CRC {", "false && CRC32C(buf[int64(i)*page:int64(i+1)*page]) != x.CRC {"}, {"pager/journal/replay.go", "if CRC32C(b) != x.CRC {", "if false {"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss",
	},
	{
		name:  "slots-free-before-the-header",
		what:  "slots are used again although the header that makes them free is not durable",
		edits: []edit{{"pager/journal/ring.go", "\tif err = j.run([]*aio.Op{h.Op}); err == nil {\n\t\terr = j.flush()\n\t}\n\tif err != nil {\n\t\tj.NotCheckpointed(h)", "\tif err = j.run([]*aio.Op{h.Op}); err != nil {\n\t\tj.NotCheckpointed(h)"}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss",
	},
	{
		name:  "header-before-the-data",
		what:  "a checkpoint's header goes out before the data store is flushed",
		edits: []edit{{"pager/journal/replay.go", "\tif err := d.flush(); err != nil {\n\t\treturn 0, fmt.Errorf(\"journal: apply: %w\", err)\n\t}\n", ""}},
		pkg:   "tests/durability", test: "TestAtomicPowerLoss",
	},

	// Waiting and ending.
	{
		name:  "drop-a-waiter",
		what:  "of those who wait for a page one is not told",
		edits: []edit{{"pager/wait.go", "\t\t\tready = b.take(r, page)\n\t\t\tbreak\n", "\t\t\tif ready = b.take(r, page); ready != nil && ready.next != nil {\n\t\t\t\tready = ready.next\n\t\t\t}\n\t\t\tbreak\n"}},
		pkg:   "tests/liveness", test: "TestOneReadForManyWaiters", hang: true,
	},
	{
		name:  "no-rescue",
		what:  "a page whose read is done waits for a goroutine that gets a P",
		edits: []edit{{"pager/rescue.go", "left -= rescueVia(w, v)", "left -= 0"}},
		pkg:   "tests/liveness", test: "TestMissesAmongSpinners",
	},
	{
		name:  "no-rescue-of-parked",
		what:  "the read of a parked goroutine waits for the goroutine that starts it, however long that gets no P",
		edits: []edit{{"pager/rescue.go", "\tstate = lookAtParked()\n", ""}},
		pkg:   "tests/liveness", test: "TestMissesAmongSpinners",
	},
	{
		name:  "rescue-tells-nobody",
		what:  "who waits for a page that was rescued is not told of it",
		edits: []edit{{"pager/housekeep.go", "case noticeLoaded, noticeRescued:", "case noticeLoaded:"}},
		pkg:   "pager", test: "TestRescue", hang: true,
	},
	{
		name:  "rescue-of-slow-reads",
		what:  "pages are read a second time although the store is just slow",
		edits: []edit{{"pager/rescue.go", "if stuck(&s, &w.last) {", "if true {"}},
		pkg:   "pager", test: "TestNoRescue", quick: true,
	},
	{
		name:  "rescue-past-the-hooks",
		what:  "a page that Verify must see is loaded by a thread that cannot call it",
		edits: []edit{{"pager/rescue.go", "bare.Load32(&d.flags)&descRaw != 0 && page < end", "page < end"}},
		pkg:   "pager", test: "TestNoRescue/a_hook",
	},
	{
		name:  "holds-stay",
		what:  "a page held for a goroutine that was parked stays pinned when nothing else happens",
		edits: []edit{{"pager/hold.go", "\tif first {\n\t\tp.w.wake()", "\tif false {\n\t\tp.w.wake()"}, {"pager/hold.go", "first := t.first == h", "_ = t.first == h"}},
		pkg:   "pager", test: "TestHoldsEndByThemselves",
	},
	{
		name:  "a-turn-is-torn-apart",
		what:  "what is held for whose turn it is is dropped while the next page is read, which takes longer",
		edits: []edit{{"pager/hold.go", "if turns && h != nil && t.turn.isOf(h.g) {", "if false {"}},
		pkg:   "pager", test: "TestACrowdTakesTurns/load_from_afar",
	},
	{
		name:  "no-turns",
		what:  "nobody gets the turn, however often he misses in vain what he had",
		edits: []edit{{"pager/turn.go", "now == 0 && misses >= turnMisses", "now == 0 && misses < 0"}},
		pkg:   "pager", test: "TestACrowdTakesTurns",
	},
	{
		name:  "close-ignores-pins",
		what:  "Close takes away memory that is pinned",
		edits: []edit{{"pager/region.go", "\t\tp.dropHolds(0)\n\t\treturn !r.pinned()\n", "\t\tp.dropHolds(0)\n\t\treturn true\n"}, {"pager/region.go", "_, w = r.d.look(page)\n\t\t\tif w&stateMask == stResident && w&pinMask == 0 {", "_, w = r.d.look(page)\n\t\t\tif w&stateMask == stResident {"}},
		pkg:   "tests/liveness", test: "TestCloseWaitsForPins", quick: true,
	},
	{
		name:  "wait-deaf-to-its-context",
		what:  "who waits for I/O behind another does not notice that his context ends",
		edits: []edit{{"pager/aio/wait_linux.go", "\tcase <-ctx.Done():\n\t\treturn ctx.Err()\n", "\tcase <-e.closed:\n"}},
		pkg:   "pager/aio", test: "TestWaitEnds", quick: true,
	},
	{
		name:  "bulk-before-misses",
		what:  "what was read ahead is installed in the order of the ring, in front of what somebody waits for",
		edits: []edit{{"pager/aio/engine_linux.go", "if op.Later {", "if false {"}},
		pkg:   "pager/aio", test: "TestLaterIsDoneAfterTheOthers", quick: true,
	},
	{
		name:  "backlog-is-a-surprise",
		what:  "a miss for which no more could be planned counts as one that nobody has foreseen: where many scans want more than can be read at once, ever less is read ahead",
		edits: []edit{{"pager/ahead.go", " && a.plan.Room > 0 &&", " &&"}},
		pkg:   "pager", test: "TestMissOfWhatWaitsForRoom", quick: true,
	},
	{
		name:  "late-touch-in-time",
		what:  "a page that came while its fault was being looked after counts as touched in time: of scans of raw memory ever less is read ahead",
		edits: []edit{{"pager/acquire.go", "r.touch(pw, w, page, op.isPark)", "r.touch(pw, w, page, false)"}},
		pkg:   "pager", test: "TestTouchOfWhatHasComeMeanwhileIsLate", quick: true,
	},
	{
		name:  "shelf-of-any-generation",
		what:  "a ReadAt copies what a page was before it left and came back",
		edits: []edit{{"pager/shelf.go", " || h.gens[at] != gen {", " {"}},
		pkg:   "pager", test: "TestTheShelfShowsNothingOld", quick: true,
	},
	{
		name:  "shelf-after-a-store",
		what:  "a ReadAt copies from where a page was read to although it has been stored to",
		edits: []edit{{"pager/fault.go", "setState(pw, stUnlocking, stDirty, flagPrefetched, 0)", "setState(pw, stUnlocking, stDirty, 0, 0)"}, {"pager/shelf.go", " || w&stateMask != stResident {", " {"}},
		pkg:   "pager", test: "TestTheShelfShowsNothingOld", quick: true,
	},
	{
		name:  "touches-lost",
		what:  "a policy that is busy is not told of all that readers went through meanwhile",
		edits: []edit{{"pager/ahead.go", "case k > 0 && a.missed[k-1].add(ev):", "case false:"}},
		pkg:   "pager", test: "TestBusyPolicyLosesNoTouch", quick: true,
	},
	{
		name:  "drops-of-a-closed-region",
		what:  "what a policy was done with is remembered of a region that is closed",
		edits: []edit{{"pager/region.go", "\tp.drops.forget(r)\n", ""}},
		pkg:   "pager", test: "TestDropDoesNotWaitForEviction", quick: true,
	},
	{
		name:  "claimed-is-not-foreseen",
		what:  "a miss of a page that is just being claimed for reading ahead looks like one that was evicted before its use: less is read ahead",
		edits: []edit{{"pager/jobs.go", "if j := &q.taken[i]; j.r == r && page >= j.next && page < j.end {", "if false {\n\t\t\tj := &q.taken[i]\n\t\t\t_ = j"}},
		pkg:   "pager", test: "TestMissOfWhatIsBeingClaimed", quick: true,
	},
	{
		name:  "claims-take-the-budget",
		what:  "what is claimed for those who miss what is planned may take all frames: other misses wait until it has been read",
		edits: []edit{{"pager/jobs.go", "return min(wantedRun>>frameShift, p.budget.Load()/aheadQuarter-p.aheadPages.Load())", "return wantedRun >> frameShift"}},
		pkg:   "pager", test: "TestClaimsForMissesLeaveRoom", quick: true,
	},
	{
		name:  "claims-take-the-slots",
		what:  "what is claimed for those who miss what is planned may take the whole queue depth",
		edits: []edit{{"pager/jobs.go", "p.queue.demand.Load() != 0 || p.aheadLoads.Load() >= p.aheadReads() {", "p.queue.demand.Load() != 0 {"}},
		pkg:   "pager", test: "TestClaimsForMissesLeaveRoom",
	},
	{
		name:  "claims-in-a-small-budget",
		what:  "what was planned is claimed although the budget is a few pages now",
		edits: []edit{{"pager/jobs.go", "if p.aheadLimit() == 0 || p.waiting.Load() != 0", "if p.waiting.Load() != 0"}},
		pkg:   "pager", test: "TestNothingIsClaimedWhereFramesAreFew",
	},
	{
		name:  "slow-read-is-a-stall",
		what:  "a request that waits for pins of reads which a slow device has is told that nobody unpins anything",
		edits: []edit{{"pager/line.go", "if stalled && p.inflight.Load() > 0 && reads == l.reads {", "if false {"}},
		pkg:   "pager", test: "TestASlowReadIsNoStall",
	},
	{
		name:  "unmapped-beside-others",
		what:  "pages stay without a mapping where others than ReadAt come to them",
		edits: []edit{{"pager/acquire.go", "\t\t\t\tr.copies.Store(0)\n\t\t\t}\n\t\t\tif d.past(page) {", "\t\t\t}\n\t\t\tif d.past(page) {"}},
		pkg:   "pager", test: "TestPagesAreMappedWhereOthersCome", quick: true,
	},
	{
		name:  "unmapped-frame-of-nobody",
		what:  "the buffer of a page that was stolen is kept for good",
		edits: []edit{{"pager/unmapped.go", "s != stLoading && s != stPosted && s != stMapping", "s > stateMask"}},
		pkg:   "pager", test: "TestUnmappedPageThatWasTaken", quick: true,
	},
	{
		name:  "unmapped-left-under-the-copy",
		what:  "what was copied from the buffer of a page that left meanwhile is taken for the page",
		edits: []edit{{"pager/unmapped.go", "if left != 0 || (atomic.LoadUint64(pw)^w)&(genMask|stateMask|flagMark) != 0 {", "if atomic.LoadUint64(pw); left != 0 {"}},
		pkg:   "pager", test: "TestUnmappedPageThatWasTaken", quick: true,
	},
	{
		name:  "unmapped-by-number-only",
		what:  "the buffer of a page without a mapping is found by its generation, which another page has had as well, 2³² claims ago",
		edits: []edit{{"pager/unmapped.go", "return e.gen.Load() == gen && e.key() == key", "return e.gen.Load() == gen"}},
		pkg:   "pager", test: "TestUnmappedPagesWithTheSameGeneration", quick: true,
	},
	{
		name:  "unmapped-left-behind",
		what:  "a page without a mapping leaves, and its buffer stays",
		edits: []edit{{"pager/unmapped.go", "\t\treturn !wanted\n", "\t\treturn false\n"}},
		pkg:   "pager", test: "TestReadAtAloneNeedsNoMapping", quick: true,
	},
	{
		name:  "streams-forgotten-in-a-burst",
		what:  "streams whose goroutines wait while another goes through what is there count as gone: too much is read ahead for the others",
		edits: []edit{{"prefetch/streams.go", "burstMost = 32", "burstMost = 0"}},
		pkg:   "prefetch", test: "TestReadaheadOfStreamsInBursts", quick: true,
	},
	{
		name:  "signal-twice",
		what:  "an eventfd is signalled twice for one lock",
		edits: []edit{{"pager/lock.go", "\tl.efd.signal()\n", "\tl.efd.signal()\n\tl.efd.signal()\n"}},
		pkg:   "tests/liveness", test: "TestLockThroughEpoll", quick: true,
	},
	{
		name:  "signal-too-early",
		what:  "an eventfd is signalled before the lock can be seen to be held",
		edits: []edit{{"pager/lock.go", "\tclose(l.done)\n\tl.efd.signal()\n", "\tl.efd.signal()\n\ttime.Sleep(50 * time.Millisecond)\n\tclose(l.done)\n"}, {"pager/lock.go", "\t\"sync\"\n", "\t\"sync\"\n\t\"time\"\n"}},
		pkg:   "tests/liveness", test: "TestLockThroughEpoll",
	},
	{
		name:  "addresses-reused-at-once",
		what:  "a region gets the addresses that were freed last",
		edits: []edit{{"pager/space.go", "s.quarant = append(s.quarant, r.at)\n", "s.quarant = append([]addrRange{r.at}, s.quarant...)\n"}, {"pager/space.go", "for i := int(s.numArenas.Load()) - 1; i >= 0; i-- {\n\t\ta := &s.arenas[i]\n\t\tif a.mode == mode &&", "if r, ok := s.reuse(n, mode); ok {\n\t\treturn r, nil\n\t}\n\tfor i := int(s.numArenas.Load()) - 1; i >= 0; i-- {\n\t\ta := &s.arenas[i]\n\t\tif a.mode == mode &&"}},
		pkg:   "pager", test: "TestAddressesRestAfterClose", quick: true,
	},

	// The rooms below.
	{
		name:  "no-lock-on-files",
		what:  "a writable file may be opened twice",
		edits: []edit{{"pager/store/file_linux.go", "switch err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind}); err {", "switch _, err := kind, error(nil); err {"}},
		pkg:   "pager/store", test: "TestAWritableFileHasOneOwner", quick: true,
	},
	{
		name:  "damaged-trace",
		what:  "a block of a trace whose checksum is wrong is believed",
		edits: []edit{{"prefetch/trace.go", "if sum != binary.LittleEndian.Uint32(b[length:]) {", "if sum != sum {"}},
		pkg:   "prefetch", test: "TestTraceCutAndDamaged", quick: true,
	},
}
