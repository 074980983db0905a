# The Cap'n Proto messages of a puzzlefs image: what a rootfs blob and, in manifest version 2, its metadata blobs hold.
#
# Only the ordinals and the types are the format; names and ids are this project's own. After a change here run
# scripts/regenerate-schema, which rewrites metadata.capnp.bin, the compiled request that build.rs reads.
@0xd5a1f0c2b7e94683;

struct Device {
  major @0 :UInt64;
  minor @1 :UInt64;
}

struct DirEntry {
  ino @0 :UInt64;
  name @1 :Data;
}

struct Directory {
  entries @0 :List(DirEntry);
  lookBelow @1 :Bool;
}

struct BlobRef {
  digest @0 :Data;       # sha-256 of the stored bytes, 32 bytes
  offset @1 :UInt64;     # in the decoded chunk
  compressed @2 :Bool;   # seekable zstd, else stored as it is
}

struct FileChunk {
  blob @0 :BlobRef;
  len @1 :UInt64;
}

struct Xattr {
  key @0 :Data;
  value @1 :Data;
}

struct InodeAdditional {
  xattrs @0 :List(Xattr);
  symlinkTarget @1 :Data;
}

struct Inode {
  ino @0 :UInt64;
  mode :union {
    unknown @1 :Void;
    fifo @2 :Void;
    char @3 :Device;
    dir @4 :Directory;
    block @5 :Device;
    file @6 :List(FileChunk);
    symlink @7 :Void;
    socket @8 :Void;
    whiteout @9 :Void;
  }
  uid @10 :UInt32;
  gid @11 :UInt32;
  permissions @12 :UInt16;
  additional @13 :InodeAdditional;
}

struct InodeVector {
  inodes @0 :List(Inode);
}

struct VerityData {
  digest @0 :Data;
  verity @1 :Data;
}

# Manifest version 3: the layers lie inside the rootfs message, the topmost first.
struct RootfsInline {
  metadatas @0 :List(InodeVector);
  fsVerityData @1 :List(VerityData);
  manifestVersion @2 :UInt64;
}

# Manifest version 2: each layer is a blob of its own that holds one InodeVector message.
struct RootfsSplit {
  metadatas @0 :List(BlobRef);
  fsVerityData @1 :List(VerityData);
  manifestVersion @2 :UInt64;
}
