package journal

import "fmt"

// MaxID is the longest Identity.ID in bytes.
const MaxID = 128

// Identity says whose journal it is.
//
// A device number may be another one after a reboot, which is just when a
// journal is needed; an inode number and its time of birth stay. So Device
// counts only where the birth time is not known.
type Identity struct {
	Device, Inode uint64
	Birth         int64  // nanoseconds since 1970; 0: not known
	ID            string // the owner's own name for the data; "": none
}

// matches reports whether both are the same data store. If either has an ID
// only that counts. Two identities of which nothing is known match.
func (a Identity) matches(b Identity) bool {
	switch {
	case a.ID != "" || b.ID != "":
		return a.ID == b.ID
	case a.Inode != b.Inode:
		return false
	case a.Birth != 0 && b.Birth != 0:
		return a.Birth == b.Birth
	}
	return a.Device == b.Device
}

func (a Identity) String() string {
	if a.ID != "" {
		return fmt.Sprintf("%q", a.ID)
	}
	return fmt.Sprintf("device %#x inode %d born %d", a.Device, a.Inode, a.Birth)
}
