package prefetch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A trace file holds the pages of a region in the order in which a program
// first touched them. All numbers are little-endian; checksums are CRC-32C.
//
//	header   8 bytes  "uffdtrc" and the version, 1
//	         4 bytes  page size in bytes
//	         4 bytes  checksum of the 12 bytes before
//	blocks   4 bytes  length of the payload in bytes, 1 to 65,536
//	         4 bytes  number of pages in it, at most the length
//	         payload  for each page the difference to the page before it, as a
//	                  zigzag varint (encoding/binary); the first page of a
//	                  block counts from 0
//	         4 bytes  checksum of length, number and payload
//	end      a block of length 0 with 0 pages
//
// Each block can be believed without the others, so a file whose writer died
// is good up to the last whole block.
const (
	traceMagic     = "uffdtrc\x01"
	traceHeader    = len(traceMagic) + 8
	maxTraceBlock  = 1 << 16
	maxTracePage   = 1<<63 - 1
	traceBlockHead = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrTrace is what ReadTrace and Replay return, wrapped, for data that is not a
// trace file, or one of a version that is not known here.
var ErrTrace = errors.New("prefetch: not a trace")

// Trace is the order in which a program first touched the pages of a region.
type Trace struct {
	PageSize int64   // bytes
	Pages    []int64 // page numbers: offset / PageSize
	// Complete is false if the file ends, or is damaged, before its end mark.
	// Pages is then what came before.
	Complete bool
}

// ReadTrace reads a trace file. Damage in the header is an error (ErrTrace),
// damage later ends the trace: see Trace.Complete. It needs memory in
// proportion to what it reads.
func ReadTrace(r io.Reader) (*Trace, error) {
	br := bufio.NewReader(r)
	var head [traceHeader]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("%w: shorter than a header", ErrTrace)
		}
		return nil, err
	}
	n := len(traceMagic)
	size := int64(binary.LittleEndian.Uint32(head[n:]))
	switch {
	case string(head[:n-1]) != traceMagic[:n-1]:
		return nil, fmt.Errorf("%w: wrong magic", ErrTrace)
	case head[n-1] != traceMagic[n-1]:
		return nil, fmt.Errorf("%w: version %d, want %d", ErrTrace, head[n-1], traceMagic[n-1])
	case crc32.Checksum(head[:n+4], castagnoli) != binary.LittleEndian.Uint32(head[n+4:]):
		return nil, fmt.Errorf("%w: header is damaged", ErrTrace)
	case size == 0 || size&(size-1) != 0:
		return nil, fmt.Errorf("%w: page size %d is not a power of two", ErrTrace, size)
	}
	t := &Trace{PageSize: size}
	var buf []byte
	for {
		block, err := readBlock(br, &buf)
		if err == io.EOF || err == io.ErrUnexpectedEOF || errors.Is(err, ErrTrace) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		if len(block) == 0 {
			t.Complete = true
			return t, nil
		}
		page := int64(0)
		for len(block) > 0 {
			d, k := binary.Varint(block)
			page += d
			block = block[k:]
			t.Pages = append(t.Pages, page)
		}
	}
}

// readBlock reads one block and returns its payload, every byte of which has
// been found good. The slice is valid until the next call.
func readBlock(r io.Reader, buf *[]byte) ([]byte, error) {
	var head [traceBlockHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length, count := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
	if length > maxTraceBlock || count > length {
		return nil, ErrTrace
	}
	if need := int(length) + 4; cap(*buf) < need {
		*buf = make([]byte, need)
	}
	b := (*buf)[:length+4]
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	payload := b[:length]
	sum := crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, payload)
	if sum != binary.LittleEndian.Uint32(b[length:]) {
		return nil, ErrTrace
	}
	// A good checksum says that the writer meant it, not that it makes sense.
	page, pages := int64(0), uint32(0)
	for rest := payload; len(rest) > 0; pages++ {
		d, k := binary.Varint(rest)
		if k <= 0 || d > maxTracePage-page || page+d < 0 {
			return nil, ErrTrace
		}
		page += d
		rest = rest[k:]
	}
	if pages != count {
		return nil, ErrTrace
	}
	return payload, nil
}

// WriteTo writes t as a complete trace file.
func (t *Trace) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(appendTraceHeader(nil, t.PageSize))
	total := int64(n)
	var b traceBlock
	put := func() {
		if err == nil {
			n, err = w.Write(b.seal())
			total += int64(n)
		}
		b.reset()
	}
	b.reset()
	for _, p := range t.Pages {
		if b.full() {
			put()
		}
		b.add(p)
	}
	if b.count > 0 {
		put()
	}
	put()
	return total, err
}

func appendTraceHeader(b []byte, pageSize int64) []byte {
	start := len(b)
	b = append(b, traceMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(pageSize))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// traceBlock is a block that is being filled.
type traceBlock struct {
	buf   []byte // head and payload
	count uint32
	last  int64
}

func (b *traceBlock) reset() {
	b.buf = append(b.buf[:0], make([]byte, traceBlockHead)...)
	b.count, b.last = 0, 0
}

func (b *traceBlock) add(page int64) {
	b.buf = binary.AppendVarint(b.buf, page-b.last)
	b.last = page
	b.count++
}

// full reports whether another page might not fit.
func (b *traceBlock) full() bool {
	return len(b.buf) > traceBlockHead+maxTraceBlock-binary.MaxVarintLen64
}

// seal returns the block as it is written; without pages it is the end mark.
func (b *traceBlock) seal() []byte {
	binary.LittleEndian.PutUint32(b.buf, uint32(len(b.buf)-traceBlockHead))
	binary.LittleEndian.PutUint32(b.buf[4:], b.count)
	b.buf = binary.LittleEndian.AppendUint32(b.buf, crc32.Checksum(b.buf, castagnoli))
	return b.buf
}
