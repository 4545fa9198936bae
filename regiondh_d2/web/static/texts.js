// All texts of the page.

const many = (count, one, more = `${one}s`) =>
  `${count.toLocaleString()} ${count === 1 ? one : more}`;

export const T = {
  skip: "Skip to the content",
  brand: "Find it again",
  views: "Views",
  photos: "Photos",
  groups: "Groups",
  copies: "Copies",
  choose: "Search with a photo",
  drop: "Drop the photo to search with it",
  loginTitle: "Token",
  loginHelp: "This server asks for the token that it printed at its start.",
  token: "Token",
  enter: "Enter",

  // The collection
  headline: "Click an object, see where else it is",
  intro: (photos, objects) =>
    `${many(photos, "photo")}, ${many(objects, "object")}. Pick a photo below, or drop or paste one of your own.`,
  introStored: (photos, objects) =>
    `${many(photos, "photo")}, ${many(objects, "object")}. Pick a photo below.`,
  all: "All",
  classes: "Only photos with",
  photosOf: (count, name) => `${many(count, "photo")}${name ? ` with ${name}` : ""}`,
  emptyCollection: "There is no photo in the index yet",
  emptyCollectionHelp: "Add some with: regiondh search-photos FOLDER",

  // The query
  query: "The photo to search with",
  wholePhoto: "Whole photo",
  objectLabel: (name, score, number) =>
    `${name}${score === null ? "" : `, ${Math.round(100 * score)} % sure`}, object ${number}`,
  boxLabel: (number) => `Box ${number} that you drew: arrow keys move it, with Shift they size it`,
  box: "your box",
  searching: "Searching for",
  remove: (name) => `Remove ${name}`,
  addMore: "All of these",
  addMoreHelp: "Further clicks add objects: answers show all of them",
  draw: "Draw a box",
  drawHelp: "Drag on the photo, or move the box with the arrow keys, then press Enter",
  draft: "Enter searches",
  hint: "Click an object. Drag a box around what wasn’t found.",
  noObjects: "No object was found here. Drag a box around what you look for.",
  hintStored: "Click an object.",
  classFilter: "Answer with",
  anyClass: "anything",
  blend: "Search for",
  blendObject: "this object",
  blendScene: "this whole scene",
  seen: (names) => `The network sees: ${names.join(", ")}`,

  // Answers
  answers: "Answers",
  same: "The same",
  similar: "Similar",
  far: "Probably nothing",
  nearest: "Nearest",
  bandHelp: (band, cutoffs, bits) =>
    ({
      same: `Up to ${cutoffs.same} of ${bits} bits differ: 1 in 1000 pairs of different things are as near`,
      similar: `Up to ${cutoffs.similar} of ${bits} bits differ: 1 in 100 pairs of different things are as near`,
      far: `More than ${cutoffs.similar} of ${bits} bits differ`,
    })[band],
  nothing: "Nothing similar here",
  nothingHelp: "No photo of the collection is near enough to be called similar.",
  showFar: "Show the nearest others",
  noAnswers: "No photo answers",
  noAnswersHelp: "Take another object, or answer with anything.",
  distance: (distance, bits) => `${distance} of ${bits} bits differ`,
  distanceShort: (distance, bits, scene) =>
    scene === undefined ? `${distance}/${bits}` : `${distance}/${bits} · scene ${scene}`,
  searchWith: (name, file) => `Search with ${name ? `this ${name} in` : ""} ${file}`,
  whole: "Whole photo",
  copiesOf: (count) => `+${many(count, "copy", "copies")}`,
  more: "Show more",
  found: (count, more) => `${more ? "more than " : ""}${many(count, "answer")}`,
  foundStatus: (counts) =>
    counts.nothing
      ? "Nothing similar here"
      : `${counts.same} the same, ${counts.similar} similar`,
  missing: "The file has gone, or can’t be read",

  // Groups
  groupsTitle: "Photos that show the same",
  groupsHelp: (distance) => `No two photos of a group differ in more than ${distance} bits.`,
  copiesTitle: "Copies and near duplicates",
  copiesHelp: "Files of the same content, or saved again.",
  noGroups: "There is no group of photos that show the same",
  noCopies: "There are no copies",
  groupOf: (count) => many(count, "photo"),

  // Adding folders
  add: "Add photos",
  addTitle: "Add a folder of photos",
  addHelp: "Its photos are encoded and put into the index. You can search meanwhile.",
  folder: "Folder",
  addStart: "Add it",
  addState: { idle: "", running: "Working…", done: "Done: the photos are there", failed: "Failed" },

  // Problems
  uploading: "Reading the photo…",
  expired: "This uploaded photo has expired",
  expiredHelp: "Uploads are kept for a short time only. Choose the photo again.",
  gone: "This photo isn’t in the collection any more",
  goneHelp: "It may have been deleted or renamed.",
  unreachable: "The server can’t be reached. Is it still running?",
  failed: "That didn’t work",
  again: "Try again",
  tooLarge: (megabytes) => `The file is larger than ${megabytes} MB`,
  back: "Back to all photos",
};
