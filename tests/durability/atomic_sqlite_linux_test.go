package durability

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkSQLiteCommit is the COMMIT of a transaction that has changed so many
// pages of 4 KiB, in WAL mode with synchronous=FULL, as the sqlite3 program
// times it. The log has been written once and begun anew before, so that its
// file does not grow; nothing is checkpointed meanwhile.
func BenchmarkSQLiteCommit(b *testing.B) {
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		b.Skip("no sqlite3 here")
	}
	for _, pages := range []int{1, 64, 4096} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			const rounds = 20
			var sql strings.Builder
			sql.WriteString(`PRAGMA page_size=4096; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-262144;
CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4096) INSERT INTO t SELECT i, randomblob(3900) FROM n;
`)
			transactions := func(n int) {
				for range n {
					fmt.Fprintf(&sql, "BEGIN;\nUPDATE t SET b=randomblob(3900) WHERE id<=%d;\nCOMMIT;\n", pages)
				}
			}
			transactions(rounds + 1)
			sql.WriteString("PRAGMA wal_checkpoint(RESTART);\n.timer on\n")
			transactions(rounds)
			for b.Loop() {
				cmd := exec.Command(program, filepath.Join(b.TempDir(), "db"))
				cmd.Stdin = strings.NewReader(sql.String())
				out, err := cmd.CombinedOutput()
				if err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				var commits []time.Duration
				statement := 0
				for line := range strings.Lines(string(out)) {
					f := strings.Fields(line)
					if len(f) < 4 || f[0] != "Run" || f[2] != "real" {
						continue
					}
					s, err := strconv.ParseFloat(f[3], 64)
					if err != nil {
						b.Fatal(err)
					}
					if statement++; statement%3 == 0 {
						commits = append(commits, time.Duration(s*1e9))
					}
				}
				if len(commits) != rounds {
					b.Fatalf("%d commits timed: %s", len(commits), out)
				}
				b.ReportMetric(median(commits), "µs/commit")
			}
		})
	}
}
