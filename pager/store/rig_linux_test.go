package store

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be its own child: what needs another process,
// or might hang, runs there under a role.
func TestMain(m *testing.M) {
	if role := os.Getenv("UFFDPAGER_STORE_TEST_ROLE"); role != "" {
		os.Exit(runRole(role))
	}
	os.Exit(m.Run())
}

// pages is n bytes of page-aligned memory outside the Go heap.
func pages(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// tmpfs is a directory in memory.
func tmpfs(t testing.TB) string {
	t.Helper()
	var st unix.Statfs_t
	const dir = "/dev/shm"
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skip("no tmpfs at " + dir)
	}
	d, err := os.MkdirTemp(dir, "store-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func writeFile(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func tempFile(t testing.TB, b []byte) string {
	t.Helper()
	return writeFile(t, filepath.Join(t.TempDir(), "data"), b)
}

func mustOpen(t testing.TB, path string, o FileOptions) *File {
	t.Helper()
	s, err := OpenFile(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*File)
}

func contents(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// child runs this test binary in a role and returns what it says.
func child(t testing.TB, role string, env ...string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), "UFFDPAGER_STORE_TEST_ROLE="+role), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("child %s: %v\n%s", role, err, out)
	}
	return string(out)
}
