package main

import (
	"io"
	"time"

	"github.com/uffdpager/uffdpager/pager"
)

// chunks is where the chunks of a scan begin, in blocks, round and round.
func chunks(s rowSpec) func() int64 {
	at, n := int64(-1), s.Size/s.Row.Chunk
	return func() int64 {
		at++
		return at % n * (s.Row.Chunk / blockSize)
	}
}

// openPreadChunks reads a chunk when its first block is asked for, and the
// other blocks from memory.
func openPreadChunks(s rowSpec, fd int) (*way, error) {
	bufs, err := blockBuffers(s.Row.Goroutines * int(s.Row.Chunk/blockSize))
	if err != nil {
		return nil, err
	}
	return &way{read: func(i int) readFunc {
		buf, have := bufs[int64(i)*s.Row.Chunk:][:s.Row.Chunk], int64(-1)
		return func(off int64) error {
			at := off / s.Row.Chunk * s.Row.Chunk
			n := min(s.Row.Chunk, s.Size-at)
			if at != have {
				switch got, err := pread(fd, buf[:n], at); {
				case err != nil:
					return err
				case int64(got) < n:
					return io.ErrUnexpectedEOF
				}
				have = at
			}
			return takeBlock(buf[off-at:][:blockSize], off, s.Stamped)
		}
	}}, nil
}

// needInBulk asks for the first half of the file in pieces of a quarter of the
// budget, each when the one before it is there, and lets go of what is there.
func needInBulk(r *pager.Region, budget int64, stop func() bool) {
	half := r.Len() / 2 / blockSize * blockSize
	piece := min(half, max(budget/4/blockSize, 1)*blockSize)
	for at := int64(0); !stop(); at += piece {
		if at+piece > half {
			at = 0
		}
		if r.Advise(at, piece, pager.WillNeed) != nil {
			return
		}
		for last := int64(-1); !stop(); {
			resident, _ := r.Residency(at, piece)
			if resident == last {
				break // all there, or gone again: what nobody has used yet has a share of the budget
			}
			last = resident
			time.Sleep(4 * time.Millisecond)
		}
		if r.Advise(at, piece, pager.DontNeed) != nil {
			return
		}
	}
}
