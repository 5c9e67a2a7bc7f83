package journal

import (
	"errors"
	"fmt"
)

// ErrRefused is what ErrForeign, ErrVersion, ErrPageSize and ErrDamaged have in
// common (errors.Is): the journal may not be used with this data store. Nothing
// has been written to either.
var ErrRefused = errors.New("journal: refused")

var (
	// ErrForeign: the journal belongs to another data store, or what is there
	// is no journal at all.
	ErrForeign error = refusal("journal: belongs to something else")
	// ErrNoJournal, which Is ErrForeign, is the second of these: a file of
	// somebody else's that happens to have the name.
	ErrNoJournal error = noJournal{}
	// ErrVersion: a format version that this code does not know.
	ErrVersion error = refusal("journal: unknown format version")
	// ErrPageSize: the journal holds commits in pages of another size.
	ErrPageSize error = refusal("journal: other page size")
	// ErrDamaged: acknowledged commits cannot be read. Both headers are broken;
	// or a record or an image is, although a later commit is there, which is
	// written only when the one before it is durable.
	ErrDamaged error = refusal("journal: damaged")

	// ErrFull: Record finds no room in the ring (a checkpoint makes some), or
	// Grow is at the limit.
	ErrFull = errors.New("journal: full")
	// ErrReplay: the journal holds commits that have not been replayed.
	ErrReplay = errors.New("journal: holds commits that are not replayed yet")
	// ErrReadOnly: the journal was opened for reading.
	ErrReadOnly = errors.New("journal: read-only")
)

type refusal string

func (r refusal) Error() string        { return string(r) }
func (r refusal) Is(target error) bool { return target == ErrRefused }

type noJournal struct{}

func (noJournal) Error() string        { return "journal: not a journal" }
func (noJournal) Is(target error) bool { return target == ErrForeign || target == ErrRefused }

func refuse(kind error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", kind, fmt.Sprintf(format, args...))
}
