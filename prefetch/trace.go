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
//	header   8 bytes  "uffdtrc" and the version, 2
//	         4 bytes  page size in bytes
//	         8 bytes  pages in the region, 0: not known
//	         2 bytes  length of the name
//	         name     of what the region shows, UTF-8; may be empty
//	         4 bytes  checksum of all before
//	blocks   4 bytes  length of the payload in bytes, 1 to 65,536
//	         4 bytes  number of pages in it, at most the length
//	         payload  for each page the difference to the page before it, as a
//	                  zigzag varint (encoding/binary); the first page of a
//	                  block counts from 0
//	         4 bytes  checksum of length, number and payload
//	end      a block of length 0 with 0 pages
//
// In version 1 the header had neither the number of pages nor the name.
//
// Each block can be believed without the others, so a file whose writer died
// is good up to the last whole block.
const (
	traceMagic     = "uffdtrc"
	traceVersion   = 2
	maxTraceName   = 1<<16 - 1
	maxTraceBlock  = 1 << 16
	maxTracePage   = 1<<63 - 1
	traceBlockHead = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrTrace is what ReadTrace and Replay return, wrapped, for data that is not a
// trace file, is damaged, or is of a version that is not known here.
var ErrTrace = errors.New("prefetch: not a trace")

// ErrTraceCut is what ReadTrace and Replay return, wrapped, beside what they have
// read of a trace that ends before its end mark: its recorder was killed, or
// the file was cut. What came before is good.
var ErrTraceCut = errors.New("prefetch: the trace has no end")

// Trace is the order in which a program first touched the pages of a region.
type Trace struct {
	PageSize int64   // bytes
	Pages    []int64 // page numbers: offset / PageSize
	Region   int64   // pages in the region when its first page was touched; 0: not known
	Name     string  // of what the region showed, as RecordOf was told; "": not known
	// Complete is false if the file ends before its end mark. Pages is then
	// what came before.
	Complete bool
}

// ReadTrace reads a trace file. One that is damaged is refused (ErrTrace). Of one
// that is cut what there is is returned together with ErrTraceCut. It
// needs memory in proportion to what it reads.
func ReadTrace(r io.Reader) (*Trace, error) {
	in := &counter{r: bufio.NewReader(r)}
	t, err := readTraceHeader(in)
	if err != nil {
		return nil, err
	}
	var buf []byte
	for {
		at := in.n
		block, err := readBlock(in, &buf)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return t, fmt.Errorf("%w: it ends after %d bytes and %d pages", ErrTraceCut, in.n, len(t.Pages))
		case errors.Is(err, ErrTrace):
			return nil, fmt.Errorf("%w: the block at byte %d is damaged", ErrTrace, at)
		case err != nil:
			return nil, err
		case len(block) == 0:
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

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func readTraceHeader(r io.Reader) (*Trace, error) {
	var head []byte
	// more reads n bytes more, and returns those.
	more := func(n int) ([]byte, error) {
		at := len(head)
		head = append(head, make([]byte, n)...)
		_, err := io.ReadFull(r, head[at:])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = fmt.Errorf("%w: shorter than a header", ErrTrace)
		}
		return head[at:], err
	}
	b, err := more(len(traceMagic) + 1 + 4)
	if err != nil {
		return nil, err
	}
	version := b[len(traceMagic)]
	t := &Trace{PageSize: int64(binary.LittleEndian.Uint32(b[len(b)-4:]))}
	switch {
	case string(b[:len(traceMagic)]) != traceMagic:
		return nil, fmt.Errorf("%w: wrong magic", ErrTrace)
	case version != 1 && version != traceVersion:
		return nil, fmt.Errorf("%w: version %d, want %d", ErrTrace, version, traceVersion)
	case version > 1:
		if b, err = more(8 + 2); err != nil {
			return nil, err
		}
		t.Region = int64(binary.LittleEndian.Uint64(b))
		if b, err = more(int(binary.LittleEndian.Uint16(b[8:]))); err != nil {
			return nil, err
		}
		t.Name = string(b)
	}
	sum := crc32.Checksum(head, castagnoli)
	if b, err = more(4); err != nil {
		return nil, err
	}
	switch {
	case sum != binary.LittleEndian.Uint32(b):
		return nil, fmt.Errorf("%w: header is damaged", ErrTrace)
	case t.PageSize == 0 || t.PageSize&(t.PageSize-1) != 0:
		return nil, fmt.Errorf("%w: page size %d is not a power of two", ErrTrace, t.PageSize)
	case t.Region < 0:
		return nil, fmt.Errorf("%w: a region of %d pages", ErrTrace, t.Region)
	}
	return t, nil
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
	n, err := w.Write(appendTraceHeader(nil, t.PageSize, t.Region, t.Name))
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

func appendTraceHeader(b []byte, pageSize, pages int64, name string) []byte {
	start := len(b)
	name = name[:min(len(name), maxTraceName)]
	b = append(b, traceMagic...)
	b = append(b, traceVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(pageSize))
	b = binary.LittleEndian.AppendUint64(b, uint64(pages))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)))
	b = append(b, name...)
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
