package pager

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/uffdpager/uffdpager/pager/journal"
	"github.com/uffdpager/uffdpager/pager/store"
)

// The record has the checksums of what is in its slots, whether the images go to the
// device with it or before their checksums are computed.
func TestRecordsHaveTheirImagesChecksums(t *testing.T) {
	for what, ctx := range contexts(t) {
		t.Run(what, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "journal")
			f, err := store.OpenFile(name, store.FileOptions{Create: true, Size: 8192})
			if err != nil {
				t.Fatal(err)
			}
			watched := &watchedJournal{Store: f}
			r := mapWatched(t, newPager(t, Options{Budget: 256 * FrameSize}), watched)
			for i, pages := range []int{1, beginAlone/FrameSize - 1, beginAlone / FrameSize} {
				for page := range pages {
					fill(t, r, page, byte(i+page))
				}
				if err := r.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				r.atomic.mu.Lock()
				c := r.atomic.log[len(r.atomic.log)-1]
				r.atomic.mu.Unlock()
				if len(c.Entries) != pages {
					t.Errorf("%d pages in a commit of %d", len(c.Entries), pages)
				}
				file, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range c.Entries {
					image := file[r.atomic.j.SlotOffset(e.Slot):][:FrameSize]
					if image[0] != byte(i+int(e.Page)) || journal.CRC32C(image) != e.CRC {
						t.Errorf("commit of %d pages: the image of page %d has another checksum than its record says, or is not its image", pages, e.Page)
					}
				}
			}
			if n := watched.early.Load(); n != 0 {
				t.Errorf("%d flushes beside writes", n)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
