package kafkaprocess

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tomato/eventlog/filelock"
)

// pom names the jars: Kafka, and a logger for what it reports.
//
//go:embed pom.xml
var pom []byte

// Home returns the folder of the jars: $TOMATO_KAFKA_HOME, else one in the
// user's cache directory.
func Home() (string, error) {
	if h := os.Getenv("TOMATO_KAFKA_HOME"); h != "" {
		return filepath.Abs(h)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for Kafka's jars: %w; set TOMATO_KAFKA_HOME", err)
	}
	return filepath.Join(cache, "tomato", "kafka-"+Version), nil
}

// Fetch sees to it that home has Kafka's jars in libs/, with Maven where they
// are absent. Of many processes that call it at once one fetches. It fails with
// ErrAbsent when there is no Maven or it cannot reach a repository.
func Fetch(ctx context.Context, home string) error {
	libs := filepath.Join(home, "libs")
	if _, err := os.Stat(libs); err == nil {
		return nil
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	lock, err := filelock.Wait(ctx, filepath.Join(home, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(libs); err == nil {
		return nil // another process was faster
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("%w: %s has no jars and there is no mvn on PATH to fetch them: install Maven (Debian: apt-get install maven) or run .ci/setup test", ErrAbsent, home)
	}
	if err := os.WriteFile(filepath.Join(home, "pom.xml"), pom, 0o644); err != nil {
		return err
	}
	// Into a folder beside, renamed when whole: libs exists or it does not.
	part := libs + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mvn, "-B", "-q", "-f", filepath.Join(home, "pom.xml"),
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+part)
	cmd.Dir = home
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: fetching the jars with Maven: %w\n%s", ErrAbsent, err, out[max(0, len(out)-1000):])
	}
	return os.Rename(part, libs)
}

// format makes dir/data the storage of a node of a new cluster. The tool takes a
// second, so what it writes is kept in home; it is the same for every new
// directory but for the node's id and the directory's own, which no two nodes of
// a cluster may share.
func format(ctx context.Context, java, home, dir string, n node) error {
	lock, err := filelock.Wait(ctx, filepath.Join(home, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	blank := filepath.Join(home, "formatted")
	if _, err := os.Stat(blank); err != nil {
		tmp, err := os.MkdirTemp(home, "format-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		if err := os.Mkdir(filepath.Join(tmp, "data"), 0o755); err != nil {
			return err
		}
		if err := writeProperties(tmp, Options{}, node{id: 1, own: ports{1, 2}, voters: voters([]ports{{1, 2}}), copies: 1, inSync: 1}); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", filepath.Join(home, "libs", "*"), "kafka.tools.StorageTool",
			"format", "--cluster-id", "dG9tYXRvLXRvbWF0by1r", "--config", filepath.Join(tmp, "server.properties"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("formatting Kafka's storage: %w\n%s", err, out)
		}
		if err := os.Rename(filepath.Join(tmp, "data"), blank); err != nil {
			return err
		}
	}
	data := filepath.Join(dir, "data")
	entries, err := os.ReadDir(blank)
	if err != nil {
		return err
	}
	// meta.properties last: it says that the storage is formatted.
	var errs []error
	for _, e := range entries {
		if e.Type().IsRegular() && e.Name() != "meta.properties" {
			errs = append(errs, copyFile(filepath.Join(blank, e.Name()), filepath.Join(data, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	meta, err := os.ReadFile(filepath.Join(blank, "meta.properties"))
	if err != nil {
		return err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	var own []byte
	for line := range strings.Lines(string(meta)) {
		switch name, _, _ := strings.Cut(line, "="); name {
		case "node.id":
			line = fmt.Sprintf("node.id=%d\n", n.id)
		case "directory.id":
			line = fmt.Sprintf("directory.id=%s\n", base64.RawURLEncoding.EncodeToString(id[:]))
		}
		own = append(own, line...)
	}
	return os.WriteFile(filepath.Join(data, "meta.properties"), own, 0o600)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
