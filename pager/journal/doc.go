// Package journal is the redo journal of an Atomic region: page images and
// commit records beside a data store, so that a commit is there whole or not
// at all, and what was acknowledged survives a crash.
//
// The package knows bytes, a store and an engine; it knows nothing of regions,
// faults or which page is dirty. docs/journal-format.md has the format as
// tables and the argument why it is safe. In short:
//
//	┌────────┬────────┬──────────────────┬──────────────────────────────────┐
//	│ header │ header │ ring of records  │ slots: one page image each       │
//	└────────┴────────┴──────────────────┴──────────────────────────────────┘
//	 copies, written    sequence order,    any free slot for any page
//	 in turn            wrapping
//
// A commit is the images and one record that names them with their checksums,
// written in any order, and then one flush. A record is in the log if it
// follows the one before it and it and all its images verify; the first that
// does not ends the log. A checkpoint copies images to the data store, flushes
// that, and then writes a header that says from which record on the log counts;
// only when that is durable may slots be used again.
//
//	Open ── nothing live ──▶ Record … Committed   ┐ one at a time
//	  │ live                  Header … Checkpointed ┘ each, side by side
//	  ├── writable: Replay ──▶ the same
//	  └── read-only: Overlay
//
// What waits for I/O says so and waits until its transfers have ended, whatever
// the context says: a transfer that goes on after its owner has left might be
// overtaken by the next one of the same bytes. The context is looked at between
// the steps.
package journal
