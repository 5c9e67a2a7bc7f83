package uffd

// Category says what PAGEMAP_SCAN knows of a page: a set of bits.
type Category uint64

const (
	PageWPAllowed Category = 1 << 0 // registered with RegisterWP on a descriptor with APIWPAsync
	PageWritten   Category = 1 << 1 // not write-protected: written since it was protected last
	PageFile      Category = 1 << 2 // file-backed or shared
	PagePresent   Category = 1 << 3 // in memory
	PageSwapped   Category = 1 << 4 // in swap, or a poison or write-protect mark without a page
	PagePFNZero   Category = 1 << 5 // the shared zero page
	PageHuge      Category = 1 << 6 // mapped by a huge page
	PageSoftDirty Category = 1 << 7 // soft-dirty
)

// ScanFlags change what Scan does with the pages it finds.
type ScanFlags uint64

const (
	// ScanProtect write-protects the pages that match (PM_SCAN_WP_MATCHING).
	// It works on ranges of descriptors with APIWPAsync; on others it re-arms
	// nothing, silently: ask for ScanCheckAsync as well.
	ScanProtect ScanFlags = 1 << 0
	// ScanCheckAsync makes Scan fail with EPERM where the range is not one of
	// those (PM_SCAN_CHECK_WPASYNC).
	ScanCheckAsync ScanFlags = 1 << 1
)

// Scan describes a scan. A page matches if, after the bits of Inverted have
// been flipped, it has all bits of Mask and, unless AnyOf is 0, one of AnyOf.
type Scan struct {
	Start, End uintptr // addresses, page-aligned
	Flags      ScanFlags
	Inverted   Category
	Mask       Category
	AnyOf      Category
	Return     Category // the bits to report; pages that differ in them do not share a PageRun
	MaxPages   uintptr  // stop after so many matching pages; 0: no limit
}

// PageRun is a stretch of matching pages with the same categories: struct
// page_region.
type PageRun struct {
	Start, End uint64 // addresses
	Categories Category
}
