package main

import (
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/workload"
)

// blockSize is what one read of a comparison reads, and the page size of all
// rows, in bytes.
const blockSize = stamp.Block

// The ways to get at the bytes of a file.
const (
	wayBytes   = "bytes"
	wayView    = "view"
	wayAcquire = "acquire"
	wayReadAt  = "readat"
	wayMmap    = "mmap"
	wayPread   = "pread"
	wayNowait  = "nowait" // preadv2(RWF_NOWAIT), and a pool for what is not in the page cache
	wayHandler = "handler"
	wayDevice  = "device"
	wayFio     = "fio"

	// The ways of writing, for the workload overwrite.
	wayWriteAt      = "writeat"
	wayAcquireWrite = "acquirewrite"
	wayPwrite       = "pwrite"
)

// compareRow is one line of the comparison.
type compareRow struct {
	Name       string `json:"name"`
	Group      string `json:"group"`
	Way        string `json:"way"`
	Procs      int    `json:"gomaxprocs"`
	Goroutines int    `json:"goroutines"`       // of the device: reads under way
	Advice     string `json:"advice,omitempty"` // of mmap: random, normal, sequential
	Direct     bool   `json:"direct"`           // past the page cache
	Warm       bool   `json:"warm,omitempty"`   // the whole file is in the page cache, and memory is not limited
	Unlimited  bool   `json:"unlimited,omitempty"`
	Chunk      int64  `json:"chunk,omitempty"`     // bytes that the device, fio or pread reads at a time; 0: a block
	PageSize   int    `json:"page_size,omitempty"` // of the pager, if not the default
	Prefetch   string `json:"prefetch,omitempty"`  // of the pager: its policy, if not the default
	Bulk       bool   `json:"bulk,omitempty"`      // a WillNeed of the other half of the file goes on meanwhile
}

const (
	groupPager  = "this pager"
	groupMmap   = "mmap"
	groupPread  = "pread"
	groupPeer   = "userfaultfd-go"
	groupDevice = "device"
)

// What ratios refer to: the device, read at random, or from front to back.
const (
	referenceRow = "device-qd64"
	referenceSeq = "device-seq"
)

// allRows is every row there is, in the order of the table.
func allRows(o compareOptions) []compareRow {
	p, g := o.procs, o.goroutines
	switch {
	case o.workload == loadOverwrite:
		return overwriteRows(p, g)
	case o.workload.ahead():
		return aheadRows(o)
	}
	ours := func(name, way string, g int) compareRow {
		return compareRow{Name: name, Group: groupPager, Way: way, Procs: p, Goroutines: g, Direct: true}
	}
	mmap := func(name, advice string, p int) compareRow {
		return compareRow{Name: name, Group: groupMmap, Way: wayMmap, Procs: p, Goroutines: max(g, p), Advice: advice}
	}
	rows := []compareRow{
		{Name: referenceRow, Group: groupDevice, Way: wayDevice, Procs: p, Goroutines: 64, Direct: true},
		{Name: "device-qd1", Group: groupDevice, Way: wayDevice, Procs: p, Goroutines: 1, Direct: true},
		{Name: "fio-qd64", Group: groupDevice, Way: wayFio, Procs: 1, Goroutines: 64, Direct: true},
		{Name: "fio-qd1", Group: groupDevice, Way: wayFio, Procs: 1, Goroutines: 1, Direct: true},

		ours("bytes", wayBytes, g),
		ours("view", wayView, g),
		ours("acquire", wayAcquire, g),
		ours("readat", wayReadAt, g),
		ours("bytes-1000g", wayBytes, 1000),
		ours("acquire-1000g", wayAcquire, 1000),
		ours("readat-1000g", wayReadAt, 1000),
		ours("bytes-1g", wayBytes, 1),
		ours("acquire-1g", wayAcquire, 1),
	}
	if o.workload != loadScan { // which has it behind what it refers to
		rows = append(rows, ours("readat-1g", wayReadAt, 1))
	}
	for _, advice := range []string{"random", "normal", "sequential"} {
		for _, procs := range procsOf(p, 8, 64, 256) {
			rows = append(rows, mmap(fmt.Sprintf("mmap-%s-p%d", advice, procs), advice, procs))
		}
	}
	warm := mmap(fmt.Sprintf("mmap-warm-p%d", p), "random", p)
	warm.Warm, warm.Unlimited = true, true
	rows = append(rows, warm,
		compareRow{Name: "pread-direct", Group: groupPread, Way: wayPread, Procs: p, Goroutines: g, Direct: true},
		compareRow{Name: "pread-direct-1g", Group: groupPread, Way: wayPread, Procs: p, Goroutines: 1, Direct: true},
		compareRow{Name: "pread-buffered", Group: groupPread, Way: wayPread, Procs: p, Goroutines: g})
	for _, procs := range procsOf(p, 8, 64, 256) {
		rows = append(rows, compareRow{Name: fmt.Sprintf("nowait-p%d", procs), Group: groupPread, Way: wayNowait, Procs: procs, Goroutines: max(g, procs)})
	}
	for _, procs := range procsOf(p, 64) {
		rows = append(rows, compareRow{Name: fmt.Sprintf("handler-p%d", procs), Group: groupPeer, Way: wayHandler, Procs: procs, Goroutines: g, Unlimited: true})
	}
	switch o.workload {
	case loadScan:
		rows = append(rows, scanRows(p)...)
	case loadRandom:
		rows = append(rows, ours("bytes", wayBytes, g).with("none"), ours("acquire", wayAcquire, g).with("none"))
	}
	return rows
}

// overwriteRows is who can write past the page cache.
func overwriteRows(p, g int) []compareRow {
	row := func(name, group, way string, g int) compareRow {
		return compareRow{Name: name, Group: group, Way: way, Procs: p, Goroutines: g, Direct: true}
	}
	return []compareRow{
		row(referenceRow, groupDevice, wayDevice, 64),
		row("device-qd1", groupDevice, wayDevice, 1),
		row("writeat", groupPager, wayWriteAt, g),
		row("writeat-1000g", groupPager, wayWriteAt, 1000),
		row("acquirewrite", groupPager, wayAcquireWrite, g),
		row("pwrite-direct", groupPread, wayPwrite, g),
		row("pwrite-direct-1g", groupPread, wayPwrite, 1),
	}
}

// procsOf is base and those of others that exceed it.
func procsOf(base int, others ...int) []int {
	list := []int{base}
	for _, n := range others {
		if n > base {
			list = append(list, n)
		}
	}
	return list
}

// chooseRows is the rows that --rows names, or all. The device is always among
// them: without it there are no ratios.
func chooseRows(o compareOptions) (rows []compareRow, err error) {
	used := make([]bool, len(o.rows))
	for _, r := range allRows(o) {
		if skipRow(r) {
			continue
		}
		wanted := len(o.rows) == 0 || r.Name == o.workload.reference()
		for i, pattern := range o.rows {
			if ok, _ := path.Match(pattern, r.Name); ok {
				wanted, used[i] = true, true
			}
		}
		if wanted {
			rows = append(rows, r)
		}
	}
	for i, ok := range used {
		if !ok {
			return nil, fmt.Errorf("--rows %s: there is no such row here (--list shows what there is)", o.rows[i])
		}
	}
	return rows, nil
}

// skipRow says whether a row cannot be had in this build or on this machine.
func skipRow(r compareRow) bool {
	return r.Way == wayHandler && !havePeer || r.Way == wayFio && !haveFio()
}

// describe says what a row is, in words.
func (r compareRow) describe() string {
	var b strings.Builder
	switch r.Way {
	case wayMmap:
		fmt.Fprintf(&b, "mmap, MADV_%s", strings.ToUpper(r.Advice))
	case wayPread:
		b.WriteString("pread")
	case wayPwrite:
		b.WriteString("pwrite")
	case wayNowait:
		b.WriteString("preadv2(RWF_NOWAIT) and a pool")
	case wayHandler:
		b.WriteString("userfaultfd-go's mapper.Handle, which never evicts")
	case wayDevice:
		fmt.Fprintf(&b, "the bare device, our engine, %d under way", r.Goroutines)
	case wayFio:
		fmt.Fprintf(&b, "the bare device, fio, %d under way", r.Goroutines)
	default:
		fmt.Fprintf(&b, "this pager, %s", map[string]string{
			wayBytes: "Bytes", wayView: "View", wayAcquire: "Acquire", wayReadAt: "ReadAt",
			wayWriteAt: "WriteAt", wayAcquireWrite: "AcquireWrite",
		}[r.Way])
	}
	if r.Chunk > 0 {
		fmt.Fprintf(&b, ", %s at a time", humanBytes(r.Chunk))
	}
	if r.Prefetch != "" {
		fmt.Fprintf(&b, ", prefetch %s", r.Prefetch)
	}
	if r.Bulk {
		b.WriteString(", while a WillNeed goes over the other half of the file")
	}
	if r.Group != groupDevice {
		fmt.Fprintf(&b, ", %s, GOMAXPROCS=%d", plural(int64(r.Goroutines), "goroutine"), r.Procs)
	}
	switch {
	case r.Warm:
		b.WriteString(", the whole file in the page cache, memory not limited")
	case r.Unlimited:
		b.WriteString(", memory not limited")
	}
	if !r.Direct {
		b.WriteString(", not direct I/O")
	}
	return b.String()
}

// compareWorkload names what is read.
type compareWorkload string

const (
	loadRandom  compareWorkload = "random"      // uniform
	loadZipf    compareWorkload = "zipf"        // Zipf 0.99, the popular blocks scattered over the file
	loadScan    compareWorkload = "scan"        // front to back, 1 MiB at a time by whoever is free
	loadHotScan compareWorkload = "hotset+scan" // four of five reads in a set of half the budget, one from a scan

	loadOverwrite compareWorkload = "overwrite" // whole blocks, uniform; with what they hold already, so that the file stays as it is

	// Those that are about reading ahead: see compare_ahead.go.
	loadInterleaved compareWorkload = "interleaved"
	loadBackward    compareWorkload = "backward"
	loadStride3     compareWorkload = "stride3"
	loadStride17    compareWorkload = "stride17"
	loadReplay      compareWorkload = "replay"
	loadTree        compareWorkload = "tree"
	loadBulk        compareWorkload = "bulk"
)

var compareWorkloads = [...]string{
	string(loadRandom), string(loadZipf), string(loadScan), string(loadHotScan), string(loadOverwrite),
	string(loadInterleaved), string(loadBackward), string(loadStride3), string(loadStride17), string(loadReplay), string(loadTree), string(loadBulk),
}

func parseCompareWorkload(s string) (compareWorkload, error) {
	for _, n := range compareWorkloads {
		if n == s {
			return compareWorkload(n), nil
		}
	}
	return "", fmt.Errorf("unknown workload %q (%s)", s, strings.Join(compareWorkloads[:], ", "))
}

// readers makes the streams of block numbers of all goroutines of a row.
type readers struct {
	kind   compareWorkload
	blocks int64
	hot    int64 // blocks of the hot set
	seed   uint64
	w      *workload.Workload
	cursor atomic.Int64 // hotset+scan: how far the scan is; replay: how far everybody is

	once    sync.Once
	ordered []int64 // replay
}

func newReaders(s rowSpec) *readers {
	kind := workload.Random
	switch s.Workload {
	case loadZipf:
		kind = workload.Zipf
	case loadScan:
		kind = workload.Scan
	case loadInterleaved:
		kind = workload.Interleaved
	}
	n := s.Size / blockSize
	return &readers{
		kind: s.Workload, blocks: n, seed: s.Seed, hot: max(min(s.Budget/blockSize/2, n), 1),
		w: workload.New(workload.Config{Kind: kind, Blocks: n, PerPage: 1, Goroutines: s.Row.Goroutines, Seed: s.Seed}),
	}
}

// stream returns what goroutine i reads: one block number after the other.
func (r *readers) stream(i int) func() int64 {
	switch r.kind {
	case loadHotScan:
	case loadBackward, loadStride3, loadStride17, loadReplay, loadTree, loadBulk:
		return r.aheadStream(i)
	default:
		s := r.w.Stream(i)
		return func() int64 { return s.Next(0).Block }
	}
	rng := rand.New(rand.NewPCG(r.seed, uint64(i)))
	apart := r.blocks / r.hot // the hot blocks are spread evenly: no two share a page that is read ahead
	return func() int64 {
		if rng.Uint64()%5 == 0 {
			return (r.cursor.Add(1) - 1) % r.blocks
		}
		return rng.Int64N(r.hot) * apart
	}
}

// rowSpec is what a process is told to do for a row, in JSON.
type rowSpec struct {
	Row      compareRow      `json:"row"`
	Workload compareWorkload `json:"workload"`
	Size     int64           `json:"size"`
	Budget   int64           `json:"budget"`
	Memory   int64           `json:"memory"`
	Seed     uint64          `json:"seed"`
	Duration time.Duration   `json:"duration"`
	Warmup   time.Duration   `json:"warmup"`
	Stamped  bool            `json:"stamped"` // the file's blocks prove themselves
	Group    string          `json:"group"`   // directory of the memory group to join, "" for none
	Counters bool            `json:"counters"`
}

// rowResult is what it answers. What could not be measured is not in Metrics.
type rowResult struct {
	Metrics map[string]float64 `json:"metrics"`
	Notes   []string           `json:"notes,omitempty"`
	Error   string             `json:"error,omitempty"`
}
