package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
)

// proof knows what every block of the file must hold.
//
// A block that this run has not written is as it was: version 0 of its stamps
// in a file that was made, whatever version it claims in a stamped FILE, and
// what an ordinary read says in any other. A block that this run has written k
// times carries version k, so an update that was lost shows as an older
// version. Writers of a block exclude its readers; otherwise both could be
// right and differ.
type proof struct {
	kind     proofKind
	file     *os.File // a descriptor of our own
	size     int64
	versions []uint32 // by block; nil when nothing is written
	locks    []sync.RWMutex
	readers  chan struct{} // as many tokens as there may be ordinary reads at once
}

type proofKind uint8

const (
	proofNone    proofKind = iota // compare nothing
	proofMade                     // stamps, all of version 0
	proofStamped                  // stamps of any version
	proofRead                     // an ordinary read
)

// versionLost marks a block whose content is unknown because a write of it
// failed.
const versionLost = ^uint32(0)

const (
	proofLocks   = 4096
	proofReaders = 16 // each holds a thread while it reads
)

func newProof(kind proofKind, file *os.File, size int64, writes bool) *proof {
	p := &proof{kind: kind, file: file, size: size}
	if writes {
		p.versions = make([]uint32, blocks(size))
		p.locks = make([]sync.RWMutex, proofLocks)
	}
	if kind == proofRead {
		p.readers = make(chan struct{}, proofReaders)
	}
	return p
}

func (p *proof) lock(block int64) *sync.RWMutex { return &p.locks[block%proofLocks] }

// version is what is expected of a block, 0 unless this run has written it.
// The caller holds the block's lock.
func (p *proof) version(block int64) uint32 {
	if p.versions == nil {
		return 0
	}
	return p.versions[block]
}

// prepare fetches what check will compare the block with, if that takes I/O.
// buf is where it goes.
func (p *proof) prepare(buf []byte, off int64, version uint32) error {
	if p.kind != proofRead || version != 0 {
		return nil
	}
	p.readers <- struct{}{}
	_, err := p.file.ReadAt(buf, off)
	<-p.readers
	return err
}

// check compares a block with what it must hold and returns how many bytes it
// has compared, and the index of the first difference or -1. ref is what
// prepare has read.
func (p *proof) check(mem []byte, off int64, version uint32, ref []byte) (compared, at int) {
	switch {
	case p.kind == proofNone || version == versionLost:
		return 0, -1
	case version != 0 || p.kind == proofMade:
		return len(mem), stamp.Check(mem, off, version)
	case p.kind == proofStamped:
		claimed, ok := stamp.Version(mem, off)
		switch {
		case len(mem) < 8:
			return 0, -1 // too short to carry a version
		case !ok:
			return len(mem), 0
		}
		return len(mem), stamp.Check(mem, off, claimed)
	}
	if bytes.Equal(mem, ref) {
		return len(mem), -1
	}
	return len(mem), firstDifference(mem, ref)
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// describe says in a few words what is wrong with a block that failed check.
// It works on a copy, as the block may change.
func (p *proof) describe(mem []byte, off int64, version uint32, at int) string {
	where := fmt.Sprintf("block at offset %d differs at byte %d", off, at)
	if len(mem) >= at+8 && binary.LittleEndian.Uint64(mem[at:]) == 0 {
		where += ", which reads as zeros"
	}
	if version != 0 || p.kind == proofMade {
		claimed, ok := stamp.Version(mem, off)
		switch {
		case !ok:
			return where + ": its first word is no stamp of this offset"
		case claimed != version:
			return fmt.Sprintf("%s: it is of version %d instead of %d", where, claimed, version)
		}
	}
	return where
}

// survived compares every block that was written with the file itself, past the
// pager, and returns the bytes compared, how many blocks were wrong, and the
// first of those in words.
func (p *proof) survived(ctx context.Context) (compared, wrong int64, first string, err error) {
	buf := make([]byte, stamp.Block)
	for block, version := range p.versions {
		if version == 0 || version == versionLost {
			continue
		}
		if block%1024 == 0 && ctx.Err() != nil {
			return compared, wrong, first, ctx.Err()
		}
		off := int64(block) * stamp.Block
		b := buf[:min(stamp.Block, p.size-off)]
		if _, err := p.file.ReadAt(b, off); err != nil {
			return compared, wrong, first, fmt.Errorf("reading back what was written: %w", err)
		}
		compared += int64(len(b))
		if at := stamp.Check(b, off, version); at != -1 {
			if wrong++; first == "" {
				first = "after Sync, in the file, " + p.describe(b, off, version, at)
			}
		}
	}
	return compared, wrong, first, nil
}
