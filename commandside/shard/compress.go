package shard

import (
	"bytes"

	"github.com/twmb/franz-go/pkg/kgo"
)

// This file owns the compression of appended batches.

// compressAbove is the size in bytes from which a batch is compressed. Even one event
// is larger. It shrinks by a third, because its id is in it three times.
const compressAbove = 256

// batchCompressor compresses batches with zstd. Records of a batch have the same
// headers, and events of the same types, so eight of them shrink to a ninth.
type batchCompressor struct{ zstd kgo.Compressor }

func newBatchCompressor() (batchCompressor, error) {
	zstd, err := kgo.DefaultCompressor(kgo.ZstdCompression().WithLevel(1)) // 1: the fastest
	return batchCompressor{zstd}, err
}

// Compress implements kgo.Compressor.
func (c batchCompressor) Compress(dst *bytes.Buffer, src []byte, flags ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	if len(src) < compressAbove {
		return src, kgo.CodecNone
	}
	return c.zstd.Compress(dst, src, flags...)
}
