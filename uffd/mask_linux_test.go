package uffd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// serve is a round of everything that a pager needs, with whatever features
// there are: fault, copy, fault, zap, fault.
func serve() error {
	available, err := Available()
	if err != nil {
		return err
	}
	u, err := Open(APISigbus, APIWriteProtect)
	if err != nil {
		return err
	}
	defer u.Close()
	if want := available&APIWriteProtect | APISigbus; u.API() != want {
		return fmt.Errorf("the handshake enabled %#x, want %#x", u.API(), want)
	}
	const pages = 4
	mem, err := unix.Mmap(-1, 0, int(2*pages*pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	copy(mem[pages*pageSize:], bytes.Repeat([]byte{7}, int(pages*pageSize)))
	dst := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	src := dst + pages*pageSize
	register, mode := RegisterMissing, uint64(0)
	if u.API()&APIWriteProtect != 0 {
		register, mode = register|RegisterWP, CopyWP
	}
	if err := u.Register(dst, pages*pageSize, register); err != nil {
		return err
	}
	vecs := []Range{{dst, pageSize}, {dst + 2*pageSize, 2 * pageSize}}
	for range 3 {
		if a, ok := faulted(load(dst)); !ok || a != dst {
			return fmt.Errorf("a load of a missing page: fault %v at %#x", ok, a)
		}
		if _, err := u.Copy(dst, src, pages*pageSize, mode); err != nil {
			return err
		}
		if _, ok := faulted(load(dst)); ok || *at(dst) != 7 {
			return errors.New("a page was copied and is not there")
		}
		if _, ok := faulted(store(dst, 8)); ok != (mode == CopyWP) {
			return fmt.Errorf("a store: fault %v", ok)
		}
		if done, err := Zap(vecs); done != len(vecs) || err != nil {
			return fmt.Errorf("zap: %d, %w", done, err)
		}
		if _, ok := faulted(load(dst + pageSize)); ok {
			return errors.New("a page that was not named was zapped")
		}
		if _, err := Zap([]Range{{dst + pageSize, pageSize}}); err != nil {
			return err
		}
	}
	return nil
}

// isMasked checks that f is refused on behalf of the mask.
func isMasked(f Feature) error {
	err := f.Supported()
	var why *UnsupportedError
	if !errors.As(err, &why) || why.Feature != f || !errors.Is(err, ErrMasked) || !errors.Is(err, ErrNotSupported) {
		return fmt.Errorf("%v is masked, Supported says %w", f, err)
	}
	return nil
}

// refuses checks that err is an UnsupportedError for f.
func refuses(f Feature, what string, err error) error {
	var why *UnsupportedError
	if !errors.As(err, &why) || why.Feature != f || masked(f) && !errors.Is(err, ErrMasked) {
		return fmt.Errorf("%s without %v: %v", what, f, err)
	}
	return nil
}

func isErrno(what string, errno uintptr, want syscall.Errno) error {
	if syscall.Errno(errno) != want {
		return fmt.Errorf("%s: %v, want %v", what, syscall.Errno(errno), want)
	}
	return nil
}

func TestWithoutAFeatureTheRestWorks(t *testing.T) {
	open(t, 0) // or skip
	for _, f := range Features() {
		t.Run(f.String(), func(t *testing.T) {
			runChild(t, "without", "-"+f.String(), nil)
		})
	}
	t.Run("all but the essential", func(t *testing.T) {
		var words []string
		for _, f := range Features() {
			switch f {
			case FeatureUserfaultfd, FeatureUserModeOnly, FeatureSigbus:
			default:
				words = append(words, "-"+f.String())
			}
		}
		runChild(t, "without", strings.Join(words, ","), nil)
	})
}

func init() {
	children["without"] = func() error {
		for _, f := range Features() {
			if masked(f) {
				if err := isMasked(f); err != nil {
					return err
				}
			}
		}
		available, err := Available()
		for f := range numFeatures {
			if masked(f) && available&features[f].api != 0 {
				return fmt.Errorf("%v is masked, the handshake offers %#x", f, available)
			}
		}
		if masked(FeatureUserfaultfd) {
			_, err2 := Open(0, 0)
			return errors.Join(refuses(FeatureUserfaultfd, "Available", err), refuses(FeatureUserfaultfd, "Open", err2))
		}
		if masked(FeatureSigbus) {
			_, err := Open(APISigbus, 0)
			return refuses(FeatureSigbus, "Open", err)
		}
		if err := serve(); err != nil {
			return err
		}
		u, err := Open(APISigbus, 0)
		if err != nil {
			return err
		}
		defer u.Close()
		// Calls that would succeed without the mask: dst is registered and
		// missing, src present.
		mem, err := unix.Mmap(-1, 0, int(2*pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		dst := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
		src := dst + pageSize
		*at(src) = 1
		wp := RegisterWP
		if masked(FeatureWriteProtect) {
			wp = 0
		}
		if err := u.Register(dst, pageSize, RegisterMissing|wp); err != nil {
			return err
		}
		var errs []error
		if masked(u.Way()) {
			errs = append(errs, fmt.Errorf("opened by %v, which is masked", u.Way()))
		}
		if masked(FeatureWriteProtect) {
			_, opened := Open(APIWriteProtect, 0)
			_, copied := u.Copy(dst, src, pageSize, CopyWP)
			_, errno := RawCopy(u.Fd(), dst, src, pageSize, CopyWP)
			errs = append(errs,
				refuses(FeatureWriteProtect, "Open", opened),
				refuses(FeatureWriteProtect, "Register", u.Register(dst, pageSize, RegisterMissing|RegisterWP)),
				refuses(FeatureWriteProtect, "WriteProtect", u.WriteProtect(dst, pageSize, ProtectWP)),
				refuses(FeatureWriteProtect, "Copy", copied),
				isErrno("RawCopy", errno, unix.EINVAL),
				isErrno("RawWriteProtect", RawWriteProtect(u.Fd(), dst, pageSize, ProtectWP), unix.EINVAL))
		}
		if masked(FeatureMove) {
			_, opened := Open(APIMove, 0)
			_, moved := u.Move(dst, src, pageSize, 0)
			_, errno := RawMove(u.Fd(), dst, src, pageSize, 0)
			errs = append(errs, refuses(FeatureMove, "Open", opened), refuses(FeatureMove, "Move", moved), isErrno("RawMove", errno, unix.EINVAL))
		}
		if masked(FeaturePoison) {
			_, opened := Open(APIPoison, 0)
			_, poisoned := u.Poison(dst, pageSize, 0)
			_, errno := RawPoison(u.Fd(), dst, pageSize, 0)
			errs = append(errs, refuses(FeaturePoison, "Open", opened), refuses(FeaturePoison, "Poison", poisoned), isErrno("RawPoison", errno, unix.EINVAL))
		}
		if masked(FeaturePagemapScan) {
			p, err := OpenPagemap()
			if err != nil {
				return err
			}
			_, _, err = p.Scan(Scan{}, nil)
			errs = append(errs, p.Close(), refuses(FeaturePagemapScan, "Scan", err))
		}
		if masked(FeatureProcessMadvise) {
			_, err := ProcessMadvise(nil, 0)
			errs = append(errs, refuses(FeatureProcessMadvise, "ProcessMadvise", err))
			if int32(zapPidfd) != noPidfd {
				errs = append(errs, errors.New("RawZap would use process_madvise"))
			}
		} else if masked(FeaturePidfdSelf) && FeatureProcessMadvise.Supported() == nil && int32(zapPidfd) < 0 {
			errs = append(errs, fmt.Errorf("RawZap would use %d, want a pidfd", int32(zapPidfd)))
		}
		if masked(FeatureDontneedLocked) {
			mem, err := unix.Mmap(-1, 0, int(pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err == nil && unix.Mlock(mem) == nil {
				if _, err := Zap([]Range{{uintptr(unsafe.Pointer(unsafe.SliceData(mem))), pageSize}}); !errors.Is(err, unix.EINVAL) {
					errs = append(errs, fmt.Errorf("zap of locked memory: %v, want EINVAL", err))
				}
			}
		}
		return errors.Join(errs...)
	}
}

func TestAWrongMaskIsAnError(t *testing.T) {
	runChild(t, "wrong mask", "-mvoe,-poison", nil)
}

func init() {
	children["wrong mask"] = func() error {
		_, opened := Open(0, 0)
		_, available := Available()
		for _, err := range []error{MaskError(), opened, available, FeatureSigbus.Supported()} {
			if err == nil || errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "-mvoe") || !strings.Contains(err.Error(), MaskEnv) {
				return fmt.Errorf("an unknown word is masked: error %v", err)
			}
		}
		if !masked(FeaturePoison) || masked(FeatureMove) {
			return errors.New("the known words are not what is masked")
		}
		return nil
	}
}

func TestTheWaysToOpen(t *testing.T) {
	for _, c := range []struct {
		mask string
		want Feature
	}{
		{"", FeatureUserModeOnly},
		{"-user_mode_only", FeatureAnyMode},
		{"-user_mode_only,-any_mode", FeatureDevUserfaultfd},
	} {
		t.Run(c.want.String(), func(t *testing.T) {
			needs(t, c.want)
			runChild(t, "way "+c.want.String(), c.mask, nil)
		})
	}
	t.Run("none", func(t *testing.T) {
		runChild(t, "no way", "-user_mode_only,-any_mode,-dev_userfaultfd", nil)
	})
}

func init() {
	for _, way := range []Feature{FeatureUserModeOnly, FeatureAnyMode, FeatureDevUserfaultfd} {
		children["way "+way.String()] = func() error {
			u, err := Open(APISigbus, 0)
			if err != nil {
				return err
			}
			if u.Way() != way {
				return fmt.Errorf("opened by %v, want %v", u.Way(), way)
			}
			flags, err := unix.FcntlInt(uintptr(u.Fd()), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				return fmt.Errorf("the descriptor is not close-on-exec: %x, %v", flags, err)
			}
			return errors.Join(serve(), u.Close())
		}
	}
	children["no way"] = func() error {
		_, err := Open(APISigbus, 0)
		for _, way := range []Feature{FeatureUserModeOnly, FeatureAnyMode, FeatureDevUserfaultfd} {
			if err == nil || !strings.Contains(err.Error(), way.String()) {
				return fmt.Errorf("the error does not say that %v was tried: %v", way, err)
			}
		}
		return errors.Join(refuses(FeatureUserfaultfd, "Open", err), refuses(FeatureSigbus, "probe", FeatureSigbus.Supported()))
	}
}

func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	needs(t, FeatureUserModeOnly)
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	t.Run("as is", func(t *testing.T) { runChild(t, "unprivileged", "", nobody) })
	t.Run("before 5.11", func(t *testing.T) { runChild(t, "unprivileged", "-user_mode_only", nobody) })
}

func init() {
	children["unprivileged"] = func() error {
		if os.Getuid() == 0 {
			return errors.New("this is still root")
		}
		for _, r := range Probe() {
			if r.Err != nil && !errors.Is(r.Err, ErrNotSupported) {
				return fmt.Errorf("probe of %v: %w", r.Feature, r.Err)
			}
		}
		if !masked(FeatureUserModeOnly) {
			return serve()
		}
		if FeatureAnyMode.Supported() == nil || FeatureDevUserfaultfd.Supported() == nil {
			return serve() // this machine lets everybody
		}
		_, err := Open(APISigbus, 0)
		if !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("the errno is lost: %v", err)
		}
		return refuses(FeatureUserfaultfd, "Open", err)
	}
}
