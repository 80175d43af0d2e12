package localstore

// The files of a Data base in its directory. Whoever fills it (a Builder, or package cache) keeps to the order: data
// is durable, then the mark.
const (
	DataFile     = "data"
	IndexFile    = "index"
	PresentFile  = "present"  // of one that is filled bit by bit: which chunks are right
	CompleteFile = "complete" // the Mark, as JSON: all of data is right
	PartialFile  = "partial"  // the Mark of one that is not: what it is counted for
)

// Mark is the content of CompleteFile and PartialFile.
type Mark struct {
	Size  int64 `json:"size"`  // length of the data in bytes
	Bytes int64 `json:"bytes"` // that it takes up, or may
}
